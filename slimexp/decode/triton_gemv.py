"""The Triton kernel of a matrix times a vector: dense, float8 or packed (shapes and ideas: ``triton_attention``)."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from slimexp.decode.triton_attention import store_output


@triton.jit
def _dot(packed, x, sums):
    """``sums`` plus the dot products of four signed bytes with four, per 32-bit word."""
    return tl.inline_asm_elementwise(
        "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [packed, x, sums], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _sums_of_four(values):
    """Sums of four neighbours [rows, BLOCK] -> [rows, BLOCK / 4]; they lie in one thread."""
    return tl.sum(tl.reshape(values, [values.shape[0], values.shape[1] // 4, 4]), 2)


@triton.jit
def _load_columns(weight, rows, START: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """Load ``BLOCK`` columns of ``rows`` from column ``START`` on."""
    column = START + tl.arange(0, BLOCK)[None, :]
    source = weight + rows[:, None].to(tl.int64) * COLS + column
    return tl.load(source, mask=column < COLS, other=0.0, eviction_policy="evict_first")


@triton.jit
def _dense(x, weight, rows, COLS: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr):
    """weight[rows] @ x, [rows]; ``BLOCK`` columns at a time, ``AHEAD`` times that on their way."""
    parts = ()
    for i in tl.static_range(AHEAD):
        parts += (_load_columns(weight, rows, i * BLOCK, COLS, BLOCK),)
    if PDL:
        gdc_wait()
    total = tl.zeros([rows.shape[0], BLOCK], tl.float32)
    for i in tl.static_range((COLS + BLOCK - 1) // BLOCK):
        now = parts[i]
        if (i + AHEAD) * BLOCK < COLS:
            parts += (_load_columns(weight, rows, (i + AHEAD) * BLOCK, COLS, BLOCK),)
        here = i * BLOCK + tl.arange(0, BLOCK)
        total += now.to(tl.float32) * tl.load(x + here, mask=here < COLS, other=0.0).to(tl.float32)[None, :]
    return tl.sum(total, 1)


@triton.jit
def _rows(each, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, EPILOGUE: tl.constexpr):
    """Rows of the weight for this program's results ``each``; a gate's and its upper projection's by turns."""
    first = tl.program_id(0) * BLOCK_ROWS
    if EPILOGUE == "gated":
        return tl.minimum(first + each // 2, ROWS - 1) + (each % 2) * ROWS
    else:
        return tl.minimum(first + each, ROWS - 1)


@triton.jit
def _load_packed(
    packed,
    scale,
    zero,
    START: tl.constexpr,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Load ``BLOCK / FOLD`` 32-bit words of each row from ``START`` on, [LINES, BLOCK], scale and zero of each four."""
    SPAN: tl.constexpr = BLOCK // FOLD
    line = tl.arange(0, LINES)
    place = tl.arange(0, BLOCK)
    rows = _rows(line[:, None] * FOLD + place[None, :] // SPAN, ROWS, BLOCK_ROWS, EPILOGUE)
    word = START + place[None, :] % SPAN
    tile = tl.load(
        packed + rows.to(tl.int64) * PACKED + word, mask=word < PACKED, other=0, eviction_policy="evict_first"
    )
    # lines come last, for Triton spreads the first dimension over a warp's threads
    four = tl.arange(0, BLOCK // 4)[:, None]
    rows = _rows(line[None, :] * FOLD + four // (SPAN // 4), ROWS, BLOCK_ROWS, EPILOGUE)
    word = START + four % (SPAN // 4) * 4
    factor = 1.0
    zero_point = 0
    if GROUP == PACKED:
        if zero is not None:
            zero_point = tl.trans(tl.load(zero + rows))
    else:
        group = rows * (PACKED // GROUP) + word // GROUP
        factor = tl.trans(tl.load(scale + group, mask=word < PACKED, other=0.0)).to(tl.float32)
        if zero is not None:
            zero_point = tl.trans(tl.load(zero + group, mask=word < PACKED, other=0))
    return tile, factor, zero_point


@triton.jit
def _packed(
    x,
    x_scale,
    packed,
    scale,
    zero,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLD: tl.constexpr,
    AHEAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Packed rows times ``x`` [LINES * FOLD]; ``BLOCK`` 32-bit words at a time, ``AHEAD`` times that on their way.

    ``FOLD`` rows lie beside each other in a line. Where a line has 4 words per thread, a thread's inputs are its own
    for all lines, and nothing passes between threads but the last sum.
    """
    SPAN: tl.constexpr = BLOCK // FOLD
    UPPER: tl.constexpr = -0x0F0F0F10  # 0xF0F0F0F0: the upper half of each byte, a signed number times 16
    ONES: tl.constexpr = 0x01010101
    parts = ()
    for i in tl.static_range(AHEAD):
        parts += (
            _load_packed(packed, scale, zero, i * SPAN, PACKED, GROUP, LINES, BLOCK, FOLD, ROWS, BLOCK_ROWS, EPILOGUE),
        )  # fmt: skip
    if PDL:
        gdc_wait()
    total = tl.zeros([LINES, BLOCK // 4], tl.float32)
    for i in tl.static_range((PACKED + SPAN - 1) // SPAN):
        tile, factor, zero_point = parts[i]
        if (i + AHEAD) * SPAN < PACKED:
            parts += (
                _load_packed(
                    packed, scale, zero, (i + AHEAD) * SPAN, PACKED, GROUP, LINES, BLOCK, FOLD, ROWS, BLOCK_ROWS,
                    EPILOGUE,
                ),
            )  # fmt: skip
        word = i * SPAN + tl.arange(0, BLOCK) % SPAN
        four = i * (SPAN // 4) + tl.arange(0, BLOCK // 4) % (SPAN // 4)
        step = tl.load(x_scale + four // (BITS // 4), mask=four < PACKED // 4, other=0.0)
        if BITS == 4:
            place = tl.max_contiguous(tl.multiple_of(word // 4 * 8 + word % 4, 4), 4)
            first = tl.load(x + place, mask=word < PACKED, other=0)
            second = tl.load(x + place + 4, mask=word < PACKED, other=0)
            dots = _dot((tile << 4) & UPPER, first[None, :], _dot(tile & UPPER, second[None, :], 0))
            sums = _dot(ONES, first, _dot(ONES, second, 0)) * 16
        else:
            first = tl.load(x + word, mask=word < PACKED, other=0)
            dots = _dot(tile, first[None, :], 0)
            sums = _dot(ONES, first, 0)
        dots = _sums_of_four(dots)
        if zero is not None:
            dots -= zero_point.to(tl.int32) * _sums_of_four(sums[None, :])
        total += dots.to(tl.float32) * (factor * step[None, :])
    result = tl.reshape(tl.sum(tl.reshape(total, [LINES, FOLD, SPAN // 4]), 2), [LINES * FOLD])
    if GROUP == PACKED:
        result *= tl.load(scale + _rows(tl.arange(0, LINES * FOLD), ROWS, BLOCK_ROWS, EPILOGUE)).to(tl.float32)
    return result / 16 if BITS == 4 else result


@triton.jit
def gemv(
    x,
    x_scale,
    squares,
    weight,
    scale,
    zero,
    bias,
    hidden,
    gain,
    out,
    out_scale,
    out_squares,
    best,
    position,
    temperature,
    seed,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_UP: tl.constexpr,
    EPSILON: tl.constexpr,
    EPILOGUE: tl.constexpr,
    SAMPLED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLD: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """``weight`` times ``x``, and the epilogue: what follows in a block of the model.

    ``"plain"``: ``out`` = product. ``"gated"``: rows 0 to ROWS are the gate's, the next ROWS the upper projection's;
    ``out`` = silu(gate) * up. ``"residual"``: ``hidden`` += product, ``out`` = hidden * gain,
    ``out_squares`` [programs] = sums of hidden^2.
    ``"head"``: ``out`` = logits, ``best`` [2, programs] = the largest and its row.
    Where the next weight is packed, ``out`` is rounded (``store_output``).
    ``PARTS`` is the number of sums in ``squares``; 0 where ``x`` is not normed. ``BITS`` is 0 where ``weight`` is not
    packed; a float8 weight has a scale per row.
    """
    program = tl.program_id(0)
    RESULTS: tl.constexpr = 2 * BLOCK_ROWS if EPILOGUE == "gated" else BLOCK_ROWS
    rows = _rows(tl.arange(0, RESULTS), ROWS, BLOCK_ROWS, EPILOGUE)
    if PDL:
        gdc_launch_dependents()
    if BITS == 0:
        y = _dense(x, weight, rows, COLS, BLOCK, AHEAD, PDL)
        if scale is not None:
            y *= tl.load(scale + rows)
    else:
        y = _packed(
            x, x_scale, weight, scale, zero, COLS * BITS // 32, GROUP * BITS // 32, BITS, RESULTS // FOLD, BLOCK, FOLD,
            AHEAD, ROWS, BLOCK_ROWS, EPILOGUE, PDL,
        )  # fmt: skip
    if PARTS > 0:
        part = tl.arange(0, PARTS_UP)
        power = tl.sum(tl.load(squares + part, mask=part < PARTS, other=0.0), 0)
        y *= tl.rsqrt(power / COLS + EPSILON)
    if bias is not None:
        y += tl.load(bias + rows).to(tl.float32)
    place = program * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = place < ROWS
    if EPILOGUE == "plain":
        store_output(y, program * BLOCK_ROWS, ROWS, out, out_scale, BLOCK_ROWS)
    elif EPILOGUE == "gated":
        gate, up = tl.split(tl.reshape(y, [BLOCK_ROWS, 2]))
        store_output(gate * tl.sigmoid(gate) * up, program * BLOCK_ROWS, ROWS, out, out_scale, BLOCK_ROWS)
    elif EPILOGUE == "residual":
        y = tl.where(real, y + tl.load(hidden + rows), 0.0)
        tl.store(hidden + place, y, mask=real)
        store_output(y * tl.load(gain + rows).to(tl.float32), program * BLOCK_ROWS, ROWS, out, out_scale, BLOCK_ROWS)
        tl.store(out_squares + program, tl.sum(y * y, 0))
    else:
        tl.store(out + place, y, mask=real)
        if SAMPLED:  # Gumbel's trick: the largest of logits with such noise is a sample of their softmax
            chance = tl.rand(seed, tl.load(position).to(tl.int32) * ROWS + place)
            y = y / temperature - tl.log(-tl.log(tl.maximum(chance, 1e-20)))
        y = tl.where(real, y, float("-inf"))
        tl.store(best + program, tl.max(y, 0))
        tl.store(best + tl.num_programs(0) + program, (program * BLOCK_ROWS + tl.argmax(y, 0)).to(tl.float32))
