import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from slimexp.quantizer.fp8_token import Fp8Token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bit_for_bit_what_a_loaded_artifact_computes(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0] = 0
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="token", dynamic=True)
    scale, _ = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())
    assert torch.equal(Fp8Token(bits=8, group_size=None)(x), fake_quantize(x, scale, None, args))
