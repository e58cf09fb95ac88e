"""The Triton kernel of a matrix times a vector, dense or of packed words (shapes and ideas: ``kernels``)."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.constexpr_function
def _place(FIELD, BITS):
    """Of a field's lowest bit when ``_number`` has moved it into the mantissa; two of 4 bits share a shift."""
    return 15 + BITS * (FIELD % (8 // BITS))


@triton.constexpr_function
def _raised(FIELD, BITS):
    """What the input of a field is multiplied by, for its place."""
    return 2.0 ** (23 - BITS - _place(FIELD, BITS))


@triton.jit
def _number(words, FIELD: tl.constexpr, BITS: tl.constexpr):
    """1 + u 2^(place - 23) of field u."""
    PLACE: tl.constexpr = _place(FIELD, BITS)
    LEFT: tl.constexpr = PLACE - FIELD * BITS
    if LEFT > 0:
        words = words << LEFT
    elif LEFT < 0:
        words = words >> -LEFT
    # (words & mask) | 1.0, spelt out because ptxas makes two instructions of it
    MASK: tl.constexpr = f"lop3.b32 $0, $1, {((1 << BITS) - 1) << PLACE}, 0x3F800000, 0xEA;"
    return tl.inline_asm_elementwise(MASK, "=f,r", [words], tl.float32, is_pure=True, pack=1)


@triton.jit
def _of_four(values):
    """Sums of four neighbours [rows, BLOCK / 4]; they lie in one thread."""
    return tl.sum(tl.reshape(values, [values.shape[0], values.shape[1] // 4, 4]), 2)


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
def _rows(each, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, END: tl.constexpr):
    """Rows of the weight for this program's results ``each``; a gate's and its upper projection's by turns."""
    first = tl.program_id(0) * BLOCK_ROWS
    if END == "gated":
        return tl.minimum(first + each // 2, ROWS - 1) + (each % 2) * ROWS
    else:
        return tl.minimum(first + each, ROWS - 1)


@triton.jit
def _part(
    words,
    scale,
    zero,
    START: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    PER_ROW: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    END: tl.constexpr,
):
    """``BLOCK / FOLD`` words of each row from ``START`` on, [LINES, BLOCK], and scale and zero of each four."""
    SPAN: tl.constexpr = BLOCK // FOLD
    line = tl.arange(0, LINES)
    place = tl.arange(0, BLOCK)
    rows = _rows(line[:, None] * FOLD + place[None, :] // SPAN, ROWS, BLOCK_ROWS, END)
    word = START + place[None, :] % SPAN
    tile = tl.load(
        words + rows.to(tl.int64) * (CHUNKS * WIDTH) + word,
        mask=word < CHUNKS * WIDTH,
        other=0,
        eviction_policy="evict_first",
    )
    # lines come last, for Triton spreads the first dimension over a warp's threads
    four = tl.arange(0, BLOCK // 4)[:, None]
    rows = _rows(line[None, :] * FOLD + four // (SPAN // 4), ROWS, BLOCK_ROWS, END)
    chunk = (START // 4 + four % (SPAN // 4)) // (WIDTH // 4)
    factor = 1.0
    nought = 0
    if PER_ROW:
        if zero is not None:
            nought = tl.trans(tl.load(zero + rows))
    else:
        group = rows * CHUNKS + chunk
        factor = tl.trans(tl.load(scale + group, mask=chunk < CHUNKS, other=0.0))
        if zero is not None:
            nought = tl.trans(tl.load(zero + group, mask=chunk < CHUNKS, other=0))
    return tile, factor, nought


@triton.jit
def _packed(
    x,
    words,
    scale,
    zero,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    PER_ROW: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLD: tl.constexpr,
    AHEAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    END: tl.constexpr,
    PDL: tl.constexpr,
):
    """Packed rows times ``x`` [LINES * FOLD]; ``BLOCK`` words at a time, ``AHEAD`` times that on their way.

    ``FOLD`` rows lie beside each other in a line. Where a line has 4 words per thread, a thread's inputs are its own
    for all lines, and nothing passes between threads but the last sum.
    """
    FIELDS: tl.constexpr = 32 // BITS
    SPAN: tl.constexpr = BLOCK // FOLD
    parts = ()
    for i in tl.static_range(AHEAD):
        parts += (
            _part(
                words, scale, zero, i * SPAN, CHUNKS, WIDTH, PER_ROW, LINES, BLOCK, FOLD, ROWS, BLOCK_ROWS, END
            ),
        )  # fmt: skip
    if PDL:
        gdc_wait()
    total = tl.zeros([LINES, BLOCK // 4], tl.float32)
    for i in tl.static_range((CHUNKS * WIDTH + SPAN - 1) // SPAN):
        tile, factor, nought = parts[i]
        if (i + AHEAD) * SPAN < CHUNKS * WIDTH:
            parts += (
                _part(
                    words, scale, zero, (i + AHEAD) * SPAN, CHUNKS, WIDTH, PER_ROW, LINES, BLOCK, FOLD, ROWS,
                    BLOCK_ROWS, END,
                ),
            )  # fmt: skip
        word = i * SPAN + tl.arange(0, BLOCK) % SPAN
        place = word // WIDTH * (WIDTH * FIELDS) + word % WIDTH
        source = x + tl.max_contiguous(tl.multiple_of(place, 4), 4)
        sums = tl.zeros([BLOCK], tl.float32)
        offsets = tl.zeros([BLOCK], tl.float32)
        product = tl.zeros([LINES, BLOCK], tl.float32)
        for field in tl.static_range(FIELDS):
            value = tl.load(source + field * WIDTH, mask=word < CHUNKS * WIDTH, other=0.0)
            product += _number(tile, field, BITS) * (value * _raised(field, BITS))[None, :]
            offsets += value * (_raised(field, BITS) + 0.5)  # of the 1, and of the 2^(BITS - 1) that u has too much
            sums += value
        product = _of_four(product) - _of_four(offsets[None, :])
        if zero is not None:
            product -= nought.to(tl.float32) * _of_four(sums[None, :]) * 0.5**BITS
        total += product * factor
    result = tl.reshape(tl.sum(tl.reshape(total, [LINES, FOLD, SPAN // 4]), 2), [LINES * FOLD]) * 2**BITS
    if PER_ROW:
        result *= tl.load(scale + _rows(tl.arange(0, LINES * FOLD), ROWS, BLOCK_ROWS, END)).to(tl.float32)
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
    FOLD: tl.constexpr,
    AHEAD: tl.constexpr,
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
    RESULTS: tl.constexpr = 2 * BLOCK_ROWS if END == "gated" else BLOCK_ROWS
    rows = _rows(tl.arange(0, RESULTS), ROWS, BLOCK_ROWS, END)
    if PDL:
        gdc_launch_dependents()
    if BITS == 16:
        y = _dense(x, weight, rows, COLS, BLOCK, PDL)
    else:
        y = _packed(
            x, weight, scale, zero, COLS * BITS // 32 // WIDTH, WIDTH, BITS, PER_ROW, RESULTS // FOLD, BLOCK, FOLD,
            AHEAD, ROWS, BLOCK_ROWS, END, PDL,
        )  # fmt: skip
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
