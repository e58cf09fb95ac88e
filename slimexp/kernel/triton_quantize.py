"""The Triton kernel that rounds rows of inputs to 8 bits."""

import triton
import triton.language as tl


@triton.jit
def rounded(
    x, numbers, scales, fixed, SIZE: tl.constexpr, BLOCK: tl.constexpr, FLOAT8: tl.constexpr, VALUES: tl.constexpr
):
    """Row by row, ``numbers`` [rows, SIZE] and ``scales`` [rows] of ``x`` [rows, SIZE]; grid [rows].
    With ``VALUES``, ``numbers`` are floats, already times their scales.

    The scale is ``fixed``, or where that is 0 the one that the row's largest entry fills. The arithmetic is that of
    ``base.rounding`` in float32, with divisions rounded to nearest, so that the numbers are the same.
    """
    LOW: tl.constexpr = -448.0 if FLOAT8 else -128.0
    HIGH: tl.constexpr = 448.0 if FLOAT8 else 127.0
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    real = place < SIZE
    values = tl.load(x + row * SIZE + place, mask=real, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(values), 0)
    scale = tl.div_rn(largest, tl.full([], (HIGH - LOW) / 2, tl.float32))
    scale = tl.where(scale == 0, 1.1920928955078125e-07, scale)
    scale = tl.where(fixed == 0, scale, fixed)
    steps = tl.div_rn(values, tl.zeros([BLOCK], tl.float32) + scale)
    steps = tl.minimum(tl.maximum(steps, LOW), HIGH)
    if FLOAT8:
        nearest = steps.to(tl.float8e4nv)
    else:
        nearest = tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,r", [steps], dtype=tl.int32, is_pure=True, pack=1
        ).to(tl.int8)
    scale += 0 * tl.sum(values, 0)
    if VALUES:
        tl.store(numbers + row * SIZE + place, nearest.to(tl.float32) * scale, mask=real)
    else:
        tl.store(numbers + row * SIZE + place, nearest, mask=real)
        tl.store(scales + row, scale)
