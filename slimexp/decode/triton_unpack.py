"""Triton kernels that read a prompt with a packed weight: unpacking it, and rounding inputs in blocks of 32.

Each is one pass over what it reads; the same in PyTorch is a dozen.
"""

import triton
import triton.language as tl


@triton.jit
def unpack(
    numbers,
    scale,
    zero,
    matrix,
    COLS: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Unpack ``numbers`` [rows, COLS * BITS / 8] (``packed_linear``) to ``matrix`` [rows, COLS]; grid [rows, parts]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < COLS
    if BITS == 4:
        byte = tl.load(numbers + row * (COLS // 2) + column // 32 * 16 + column % 16, mask=real, other=0).to(tl.int32)
        number = tl.where(column % 32 < 16, byte << 28 >> 28, byte >> 4)
    else:
        number = tl.load(numbers + row * COLS + column, mask=real, other=0).to(tl.int32)
    group = row * GROUPS + column // (COLS // GROUPS)
    if zero is not None:
        number -= tl.load(zero + group, mask=real, other=0).to(tl.int32)
    value = number.to(tl.float32) * tl.load(scale + group, mask=real, other=0.0).to(tl.float32)
    tl.store(matrix + row * COLS + column, value, mask=real)


@triton.jit
def round_blocks(x, out, COUNT, BLOCK: tl.constexpr):
    """Round ``x`` [COUNT] to int8, each 32 neighbours by the largest of them, and store floats; grid [parts]."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = place < COUNT
    values = tl.reshape(tl.load(x + place, mask=real, other=0.0).to(tl.float32), [BLOCK // 32, 32])
    largest = tl.maximum(tl.max(tl.abs(values), 1), 1e-30)
    step = tl.div_rn(largest, tl.full([BLOCK // 32], 127.0, tl.float32))[:, None]
    ratio = tl.div_rn(values, step + tl.zeros([BLOCK // 32, 32], tl.float32))
    nearest = tl.inline_asm_elementwise(
        "cvt.rni.s32.f32 $0, $1;", "=r,r", [ratio], dtype=tl.int32, is_pure=True, pack=1
    )
    tl.store(out + place, tl.reshape(nearest.to(tl.float32) * step, [BLOCK]), mask=real)
