"""Triton kernels of one decode step at batch 1: attention over the cache and the next token; ``products`` has the rest.

A step moves every weight once and little else, so the kernels are about reading: 16 bytes per thread and load, the
first tile of a weight on its way before the kernel before has ended (programmatic dependent launch, ``PDL``).
Activations are float32 throughout; they are a few kilobytes.

RMSNorm needs no pass of its own: who writes the residual stream h also writes h * gain and, per program, the sum of
h^2; who reads multiplies its sums by 1 / rms at the end.

Packed weights are never turned into numbers one by one. An unsigned u of s bits is put into the mantissa of a float32,
under the exponent of 1: at the top of it, that number is 1 + u / 2^s. So ``sum x * (1 + u / 2^s)`` needs a masking and
a multiply-add per weight and a shift for one or two, and what the offsets contribute is subtracted once per group. An
H100 that reads 3 TB/s has time for ten instructions per byte.

Shapes: x [COLS], weight [ROWS, COLS]; words [ROWS, CHUNKS, WIDTH] int32 (see ``words``).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _normed(first, second, gain, half, HALF: tl.constexpr, EPSILON: tl.constexpr):
    """RMSNorm of one head, given as its two halves."""
    scale = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + EPSILON)
    return (
        first * scale * tl.load(gain + half).to(tl.float32),
        second * scale * tl.load(gain + HALF + half).to(tl.float32),
    )


@triton.jit
def attend(
    qkv,
    query_gain,
    key_gain,
    cosine,
    sine,
    keys,
    values,
    position,
    out,
    partial,
    arrived,
    SCALE: tl.constexpr,
    EPSILON: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    LENGTH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """RoPE, the cache's new entry, and attention of one head over its part of the cache.

    Grid [heads, splits]. Positions before this one are cut into parts of whole blocks; programs without a part leave.
    Each leaves its sum, its largest score and its mass (Dao et al., Flash-Decoding, 2023) in ``partial``
    [heads, splits, 2 HALF + 2]; who comes last of a head puts them together. ``keys``, ``values`` [KV heads, LENGTH,
    2 HALF] hold the positions before this one; nobody reads the entry that is written.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.load(position).to(tl.int32)
    share = tl.maximum(tl.cdiv(tl.cdiv(at, SPLITS), BLOCK), 1) * BLOCK
    active = tl.maximum(tl.cdiv(at, share), 1)
    if split < active:
        group: tl.constexpr = HEADS // KV_HEADS
        kv = head // group
        half = tl.arange(0, HALF)
        wide = tl.arange(0, 2 * HALF)
        q1 = tl.load(qkv + head * 2 * HALF + half)
        q2 = tl.load(qkv + head * 2 * HALF + HALF + half)
        own = qkv + (HEADS + kv) * 2 * HALF
        k1 = tl.load(own + half)
        k2 = tl.load(own + HALF + half)
        v = tl.load(own + KV_HEADS * 2 * HALF + wide)
        if query_gain is not None:
            q1, q2 = _normed(q1, q2, query_gain, half, HALF, EPSILON)
            k1, k2 = _normed(k1, k2, key_gain, half, HALF, EPSILON)
        c = tl.load(cosine + at * HALF + half)
        s = tl.load(sine + at * HALF + half)
        q1, q2 = (q1 * c - q2 * s) * SCALE, (q2 * c + q1 * s) * SCALE
        k1, k2 = (k1 * c - k2 * s).to(keys.dtype.element_ty), (k2 * c + k1 * s).to(keys.dtype.element_ty)
        v = v.to(values.dtype.element_ty)
        is_last = split == active - 1
        cache = kv.to(tl.int64) * LENGTH * 2 * HALF
        if is_last and head % group == 0:
            tl.store(keys + cache + at * 2 * HALF + half, k1)
            tl.store(keys + cache + at * 2 * HALF + HALF + half, k2)
            tl.store(values + cache + at * 2 * HALF + wide, v)
        peak = tl.where(is_last, tl.sum(q1 * k1.to(tl.float32), 0) + tl.sum(q2 * k2.to(tl.float32), 0), float("-inf"))
        mass = tl.where(is_last, 1.0, 0.0)
        total = tl.where(is_last, v.to(tl.float32), 0.0)
        for start in tl.range(split * share, tl.minimum(at, (split + 1) * share), BLOCK):
            there = start + tl.arange(0, BLOCK)
            real = there < at
            key = keys + cache + there[:, None] * 2 * HALF + half[None, :]
            key1 = tl.load(key, mask=real[:, None], other=0.0).to(tl.float32)
            key2 = tl.load(key + HALF, mask=real[:, None], other=0.0).to(tl.float32)
            value = tl.load(
                values + cache + there[:, None] * 2 * HALF + wide[None, :], mask=real[:, None], other=0.0
            ).to(tl.float32)
            score = tl.sum(key1 * q1[None, :] + key2 * q2[None, :], 1)
            score = tl.where(real, score, float("-inf"))
            higher = tl.maximum(peak, tl.max(score, 0))
            weight = tl.exp(score - higher)
            keep = tl.exp(peak - higher)
            mass = mass * keep + tl.sum(weight, 0)
            total = total * keep + tl.sum(value * weight[:, None], 0)
            peak = higher
        if active == 1:
            tl.store(out + head * 2 * HALF + wide, total / mass)
        else:
            mine = partial + (head * SPLITS + split) * (2 * HALF + 2)
            tl.store(mine + wide, total)
            tl.store(mine + 2 * HALF, peak)
            tl.store(mine + 2 * HALF + 1, mass)
            tl.debug_barrier()
            if tl.atomic_add(arrived + head, 1) == active - 1:
                tl.debug_barrier()
                each = tl.arange(0, SPLITS)
                theirs = partial + (head * SPLITS + each) * (2 * HALF + 2)
                here = each < active
                peaks = tl.load(theirs + 2 * HALF, mask=here, other=float("-inf"), cache_modifier=".cg")
                masses = tl.load(theirs + 2 * HALF + 1, mask=here, other=0.0, cache_modifier=".cg")
                parts = tl.load(theirs[:, None] + wide[None, :], mask=here[:, None], other=0.0, cache_modifier=".cg")
                weights = tl.exp(peaks - tl.max(peaks, 0))
                mixed = tl.sum(parts * weights[:, None], 0) / tl.sum(masses * weights, 0)
                tl.store(out + head * 2 * HALF + wide, mixed)
                tl.store(arrived + head, 0)


@triton.jit
def advance(
    best,
    tokens,
    position,
    embedding,
    gain,
    hidden,
    out,
    squares,
    SIZE: tl.constexpr,
    SIZE_UP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PROGRAMS_UP: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_UP: tl.constexpr,
    CHOOSES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take the token that won, count on, and put its embedding on the residual stream. One program.

    Without ``CHOOSES`` the token is the one that ``tokens`` already has at ``position``.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.load(position)
    if CHOOSES:
        each = tl.arange(0, PROGRAMS_UP)
        largest = tl.load(best + each, mask=each < PROGRAMS, other=float("-inf"))
        winner = tl.argmax(largest, 0)
        token = tl.load(best + PROGRAMS + winner).to(tl.int64)
        at += 1
        tl.store(tokens + at, token)
        tl.debug_barrier()
        tl.store(position, at)
    else:
        token = tl.load(tokens + at)
    channel = tl.arange(0, SIZE_UP)
    real = channel < SIZE
    h = tl.load(embedding + token * SIZE + channel, mask=real, other=0.0).to(tl.float32)
    tl.store(hidden + channel, h, mask=real)
    tl.store(out + channel, h * tl.load(gain + channel, mask=real, other=0.0).to(tl.float32), mask=real)
    part = tl.arange(0, PARTS_UP)
    tl.store(squares + part, tl.where(part == 0, tl.sum(h * h, 0), 0.0), mask=part < PARTS)
