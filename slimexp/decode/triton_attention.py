"""Triton kernels of a decode step at batch 1: attention over the cache, and the next token. See also ``triton_gemv``.

A step moves every weight once and little else, so the kernels are about reading: 16 bytes per thread and load, the
first tile of a weight on its way before the kernel before has ended (programmatic dependent launch, ``PDL``).

RMSNorm needs no pass of its own: who writes the residual stream h also writes h * gain and, per program, the sum of
h^2; who reads multiplies its sums by 1 / rms at the end.

Packed weights are multiplied as integers, four per instruction, by inputs that who writes them rounds to int8 with one
scale per 32 neighbours: turned into floats one by one, they would cost more time than reading them. Activations that
meet dense weights have the type of the embedding.

Shapes: x [COLS], weight [ROWS, COLS]; packed weight [ROWS, COLS * BITS / 32] int32 (``packed_linear``).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def store_output(y, start, SIZE: tl.constexpr, out, out_scale, COUNT: tl.constexpr):
    """Store ``y`` [COUNT] from ``start`` on: as it is or, with ``out_scale``, as int8 with a scale per 32."""
    if out_scale is None:
        place = start + tl.arange(0, COUNT)
        tl.store(out + place, y, mask=place < SIZE)
    else:
        block = tl.arange(0, COUNT // 32)
        y = tl.reshape(y, [COUNT // 32, 32])
        step = tl.maximum(tl.max(tl.abs(y), 1), 1e-30) / 127
        nearest = tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,r", [y / step[:, None]], dtype=tl.int32, is_pure=True, pack=1
        )
        place = start + block[:, None] * 32 + tl.arange(0, 32)[None, :]
        tl.store(out + place, nearest.to(tl.int8), mask=place < SIZE)
        tl.store(out_scale + start // 32 + block, step, mask=start + block * 32 < SIZE)


@triton.jit
def _normed(vector, gain, EPSILON: tl.constexpr):
    """RMSNorm of one head [WIDTH]."""
    WIDTH: tl.constexpr = vector.shape[0]
    scale = tl.rsqrt(tl.sum(vector * vector, 0) / WIDTH + EPSILON)
    return vector * scale * tl.load(gain + tl.arange(0, WIDTH)).to(tl.float32)


@triton.jit
def _load_block(cache, kv, block, LENGTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Load one block of positions, all channels [BLOCK, WIDTH], from ``cache`` [KV heads, LENGTH, WIDTH]."""
    there = block * BLOCK + tl.arange(0, BLOCK)
    place = (kv.to(tl.int64) * LENGTH + there[:, None]) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(cache + place, mask=there[:, None] < LENGTH, other=0.0)


@triton.jit
def _rotated(vector, c, s):
    """Rotary position embedding (RoPE): the two halves of a head rotated by ``c`` and ``s`` [HALF]."""
    HALF: tl.constexpr = c.shape[0]
    first, second = tl.split(tl.trans(tl.reshape(vector, [2, HALF])))
    rotated = tl.join(first * c - second * s, second * c + first * s)
    return tl.reshape(tl.trans(rotated), [2 * HALF])


@triton.jit
def attend(
    qkv,
    query_gain,
    key_gain,
    angles,
    keys,
    values,
    position,
    out,
    out_scale,
    partial,
    arrived,
    SCALE: tl.constexpr,
    EPSILON: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    LENGTH: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_UP: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """RoPE, the cache's new entry, and attention of one head over its part of the cache.

    Grid [heads, splits]. Split s takes blocks s, s + SPLITS, ... of the positions before this one; those without a
    block do nothing. Each stores its sum, its largest score and its mass (Dao et al., Flash-Decoding, 2023) in
    ``partial`` [heads, splits, 2 HALF + 2]; the last program of a head to arrive combines them. ``keys``, ``values``
    [KV heads, LENGTH, 2 HALF] hold the positions before this one; what is read of others counts for nothing.

    A program of few bytes takes as long as its chain of loads: all that do not depend on each other come first.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    WIDTH: tl.constexpr = 2 * HALF
    group: tl.constexpr = HEADS // KV_HEADS
    kv = head // group
    half = tl.arange(0, HALF)
    wide = tl.arange(0, WIDTH)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.load(position).to(tl.int32)
    key = _load_block(keys, kv, split, LENGTH, WIDTH, BLOCK)
    value = _load_block(values, kv, split, LENGTH, WIDTH, BLOCK)
    q = tl.load(qkv + head * WIDTH + wide)
    own = qkv + (HEADS + kv) * WIDTH
    k = tl.load(own + wide)
    v = tl.load(own + KV_HEADS * WIDTH + wide).to(values.dtype.element_ty)
    c = tl.load(angles + half)
    s = tl.load(angles + HALF + half)
    active = tl.minimum(tl.maximum(tl.cdiv(at, BLOCK), 1), SPLITS)
    if split < active:
        if query_gain is not None:
            q, k = _normed(q, query_gain, EPSILON), _normed(k, key_gain, EPSILON)
        q = _rotated(q, c, s) * SCALE
        newest = _rotated(k, c, s).to(keys.dtype.element_ty)
        first = split == 0
        if first and head % group == 0:
            place = (kv.to(tl.int64) * LENGTH + at) * WIDTH + wide
            tl.store(keys + place, newest)
            tl.store(values + place, v)
        peak = tl.where(first, tl.sum(q * newest.to(tl.float32), 0), float("-inf"))
        mass = tl.where(first, 1.0, 0.0)
        total = tl.where(first, v.to(tl.float32), 0.0)
        for block in tl.range(split, tl.maximum(tl.cdiv(at, BLOCK), split + 1), SPLITS):
            if block > split:
                key = _load_block(keys, kv, block, LENGTH, WIDTH, BLOCK)
                value = _load_block(values, kv, block, LENGTH, WIDTH, BLOCK)
            score = tl.sum(key.to(tl.float32) * q[None, :], 1)
            score = tl.where(block * BLOCK + tl.arange(0, BLOCK) < at, score, float("-inf"))
            higher = tl.maximum(peak, tl.max(score, 0))
            weight = tl.exp(score - higher)
            decay = tl.exp(peak - higher)
            mass = mass * decay + tl.sum(weight, 0)
            total = total * decay + tl.sum(value.to(tl.float32) * weight[:, None], 0)
            peak = higher
        if active == 1:
            store_output(total / mass, head * WIDTH, HEADS * WIDTH, out, out_scale, WIDTH)
        else:
            own_partial = partial + (head * SPLITS + split) * (WIDTH + 2)
            tl.store(own_partial + wide, total)
            tl.store(own_partial + WIDTH, peak)
            tl.store(own_partial + WIDTH + 1, mass)
            tl.debug_barrier()
            if tl.atomic_add(arrived + head, 1) == active - 1:
                tl.debug_barrier()
                each = tl.arange(0, SPLITS_UP)
                partials = partial + (head * SPLITS + each) * (WIDTH + 2)
                here = each < active
                peaks = tl.load(partials + WIDTH, mask=here, other=float("-inf"), cache_modifier=".cg")
                masses = tl.load(partials + WIDTH + 1, mask=here, other=0.0, cache_modifier=".cg")
                parts = tl.load(partials[:, None] + wide[None, :], mask=here[:, None], other=0.0, cache_modifier=".cg")
                weights = tl.exp(peaks - tl.max(peaks, 0))
                mixed = tl.sum(parts * weights[:, None], 0) / tl.sum(masses * weights, 0)
                store_output(mixed, head * WIDTH, HEADS * WIDTH, out, out_scale, WIDTH)
                tl.store(arrived + head, 0)


@triton.jit
def advance(
    best,
    tokens,
    position,
    embedding,
    gain,
    cosine,
    sine,
    angles,
    hidden,
    out,
    out_scale,
    squares,
    SIZE: tl.constexpr,
    SIZE_UP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PROGRAMS_UP: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_UP: tl.constexpr,
    HALF: tl.constexpr,
    CHOOSES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take the token that won, count on, and put its embedding on the residual stream. One program.

    ``angles`` [2, HALF] takes the cosine and sine of its position.
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
    half = tl.arange(0, HALF)
    tl.store(angles + half, tl.load(cosine + at * HALF + half))
    tl.store(angles + HALF + half, tl.load(sine + at * HALF + half))
    channel = tl.arange(0, SIZE_UP)
    real = channel < SIZE
    h = tl.load(embedding + token * SIZE + channel, mask=real, other=0.0).to(tl.float32)
    tl.store(hidden + channel, h, mask=real)
    store_output(h * tl.load(gain + channel, mask=real, other=0.0).to(tl.float32), 0, SIZE, out, out_scale, SIZE_UP)
    part = tl.arange(0, PARTS_UP)
    tl.store(squares + part, tl.where(part == 0, tl.sum(h * h, 0), 0.0), mask=part < PARTS)
