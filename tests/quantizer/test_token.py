import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from slimexp.quantizer.token import Token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bit_for_bit_what_a_loaded_artifact_computes(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0] = 0
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
    scale, zero_point = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())
    assert torch.equal(Token(bits=8, group_size=None)(x), fake_quantize(x, scale, zero_point, args))


@pytest.mark.fast
@pytest.mark.parametrize("shape", [(8,), (6, 8), (3, 2, 8), (3, 1, 2, 8), (0, 8)])
def test_every_row_has_its_own_scale_whatever_the_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = x.reshape(-1, 8)
    scale = rows.abs().amax(-1, keepdim=True) / 127.5
    expected = (rows / scale).round().clamp(-128, 127) * scale
    assert torch.equal(Token(bits=8, group_size=None)(x), expected.reshape(shape))
