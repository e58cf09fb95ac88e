"""Triton kernels of one decode step at batch 1: a matrix times a vector, attention over the cache, the next token.

A step moves every weight once and little else, so the kernels are about reading: 16 bytes per thread and load, the
first tile of a weight on its way before the kernel before has ended (programmatic dependent launch, ``PDL``).
Activations are float32 throughout; they are a few kilobytes.

RMSNorm needs no pass of its own: who writes the residual stream h also writes h * gain and, per program, the sum of
h^2; who reads multiplies its sums by 1 / rms at the end.

Packed weights are never turned into numbers one by one. An unsigned u of s bits is put into the upper bits of a
float32's mantissa, under the exponent of 1: that number is 1 + u / 2^s. So ``sum x * (1 + u / 2^s)`` needs a shift
(one for two of 4 bits), a mask and a multiply-add per weight, and what the offsets contribute is subtracted per group.

Shapes: x [COLS], weight [ROWS, COLS]; words [ROWS, CHUNKS, WIDTH] int32 (see ``words``).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

ONE = tl.constexpr(0x3F800000)  # 1.0 in float32
BYTE = tl.constexpr(0x007F8000)  # upper 8 bits of its mantissa
HIGH = tl.constexpr(0x00780000)
LOW = tl.constexpr(0x00078000)


@triton.jit
def _aligned(words, PAIR: tl.constexpr):
    """Byte ``PAIR`` of every word, moved to bits 15 to 22."""
    if PAIR == 0:
        return words << 15
    elif PAIR == 1:
        return words << 7
    elif PAIR == 2:
        return words >> 1
    else:
        return words >> 9


@triton.jit
def _number(words, MASK: tl.constexpr):
    return ((words & MASK) | ONE).to(tl.float32, bitcast=True)


@triton.jit
def _dense(x, weight, rows, COLS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """weight[rows] @ x, [rows]."""
    here = tl.arange(0, BLOCK)
    source = weight + rows[:, None].to(tl.int64) * COLS + here[None, :]
    tile = tl.load(source, mask=here[None, :] < COLS, other=0.0, eviction_policy="evict_first")
    if PDL:
        gdc_wait()
    total = tl.zeros([rows.shape[0], BLOCK], tl.float32)
    for start in tl.static_range(0, COLS, BLOCK):
        values = tl.load(x + start + here, mask=start + here < COLS, other=0.0)
        now = tile
        if start + BLOCK < COLS:
            ahead = start + BLOCK
            tile = tl.load(source + ahead, mask=ahead + here[None, :] < COLS, other=0.0, eviction_policy="evict_first")
        total += now.to(tl.float32) * values[None, :]
    return tl.sum(total, 1)


@triton.jit
def _packed(
    x,
    words,
    scale,
    zero,
    rows,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """As ``_dense`` of packed rows; ``BLOCK`` chunks at a time."""
    chunk = tl.arange(0, BLOCK)
    lane = tl.arange(0, WIDTH)
    inside = chunk[None, :, None] < CHUNKS
    within = chunk[:, None] * (WIDTH * 32 // BITS) + lane[None, :]
    row = rows[:, None, None].to(tl.int64) * (CHUNKS * WIDTH)
    source = words + row + (chunk[:, None] * WIDTH + lane[None, :])[None, :, :]
    tile = tl.load(source, mask=inside, other=0, eviction_policy="evict_first")
    if PDL:
        gdc_wait()
    total = tl.zeros([rows.shape[0], BLOCK, WIDTH], tl.float32)
    for start in tl.static_range(0, CHUNKS, BLOCK):
        now = tile
        if start + BLOCK < CHUNKS:
            ahead = start + BLOCK
            tile = tl.load(
                source + ahead * WIDTH,
                mask=ahead + chunk[None, :, None] < CHUNKS,
                other=0,
                eviction_policy="evict_first",
            )
        real = start + chunk[:, None] < CHUNKS
        first = x + start * (WIDTH * 32 // BITS) + within
        sums = tl.zeros([BLOCK, WIDTH], tl.float32)
        offsets = tl.zeros([BLOCK, WIDTH], tl.float32)
        part = tl.zeros([rows.shape[0], BLOCK, WIDTH], tl.float32)
        for pair in tl.static_range(4):
            both = _aligned(now, pair)
            if BITS == 8:
                value = tl.load(first + pair * WIDTH, mask=real, other=0.0)
                part += _number(both, BYTE) * value[None, :, :]
                offsets += 1.5 * value
                sums += value
            else:
                low = tl.load(first + 2 * pair * WIDTH, mask=real, other=0.0)
                high = tl.load(first + (2 * pair + 1) * WIDTH, mask=real, other=0.0)
                part += _number(both, LOW) * (16 * low)[None, :, :]
                part += _number(both, HIGH) * high[None, :, :]
                offsets += 16.5 * low + 1.5 * high
                sums += low + high
        part -= offsets[None, :, :]
        if PER_ROW:
            if zero is not None:
                part -= tl.load(zero + rows).to(tl.float32)[:, None, None] * sums[None, :, :] / 2**BITS
            total += part
        else:
            group = rows[:, None] * CHUNKS + start + chunk[None, :]
            known = start + chunk[None, :] < CHUNKS
            if zero is not None:
                zeros = tl.load(zero + group, mask=known, other=0).to(tl.float32)
                part -= zeros[:, :, None] * sums[None, :, :] / 2**BITS
            total += part * tl.load(scale + group, mask=known, other=0.0).to(tl.float32)[:, :, None]
    result = tl.sum(tl.sum(total, 2), 1) * 2**BITS
    if PER_ROW:
        result *= tl.load(scale + rows).to(tl.float32)
    return result


@triton.jit
def product(
    x,
    squares,
    weight,
    scale,
    zero,
    bias,
    hidden,
    gain,
    out,
    out_squares,
    best,
    position,
    temperature,
    seed,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    PER_ROW: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_UP: tl.constexpr,
    EPSILON: tl.constexpr,
    END: tl.constexpr,
    SAMPLED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """``weight`` times ``x``, and what follows in a block of the model, by ``END``.

    ``"plain"``: ``out`` = product. ``"gated"``: rows 0 to ROWS are the gate's, the next ROWS the upper projection's;
    ``out`` = silu(gate) * up. ``"residual"``: ``hidden`` += product, ``out`` = hidden * gain,
    ``out_squares`` [programs] = sums of hidden^2.
    ``"head"``: ``out`` = logits, ``best`` [2, programs] = the largest and its row.
    ``PARTS`` is the number of sums in ``squares``; 0 where ``x`` is not normed. ``BITS`` is 16 for a dense weight.
    """
    program = tl.program_id(0)
    if END == "gated":
        each = tl.arange(0, 2 * BLOCK_ROWS)
        rows = tl.minimum(program * BLOCK_ROWS + each // 2, ROWS - 1) + (each % 2) * ROWS
    else:
        rows = tl.minimum(program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), ROWS - 1)
    if PDL:
        gdc_launch_dependents()
    if BITS == 16:
        y = _dense(x, weight, rows, COLS, BLOCK, PDL)
    else:
        y = _packed(x, weight, scale, zero, rows, COLS * BITS // 32 // WIDTH, WIDTH, BITS, PER_ROW, BLOCK, PDL)
    if PARTS > 0:
        part = tl.arange(0, PARTS_UP)
        power = tl.sum(tl.load(squares + part, mask=part < PARTS, other=0.0), 0)
        y *= tl.rsqrt(power / COLS + EPSILON)
    if bias is not None:
        y += tl.load(bias + rows).to(tl.float32)
    place = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = place < ROWS
    if END == "plain":
        tl.store(out + place, y, mask=real)
    elif END == "gated":
        gate, up = tl.split(tl.reshape(y, [BLOCK_ROWS, 2]))
        tl.store(out + place, gate * tl.sigmoid(gate) * up, mask=real)
    elif END == "residual":
        y = tl.where(real, y + tl.load(hidden + rows), 0.0)
        tl.store(hidden + place, y, mask=real)
        tl.store(out + place, y * tl.load(gain + rows).to(tl.float32), mask=real)
        tl.store(out_squares + program, tl.sum(y * y, 0))
    else:
        tl.store(out + place, y, mask=real)
        if SAMPLED:  # Gumbel's trick: the largest of logits with such noise is a sample of their softmax
            chance = tl.rand(seed, tl.load(position).to(tl.int32) * ROWS + place)
            y = y / temperature - tl.log(-tl.log(tl.maximum(chance, 1e-20)))
        y = tl.where(real, y, float("-inf"))
        tl.store(best + program, tl.max(y, 0))
        tl.store(best + tl.num_programs(0) + program, (program * BLOCK_ROWS + tl.argmax(y, 0)).to(tl.float32))


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
