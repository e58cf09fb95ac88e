import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from slimexp.quantizer.fp8_static import Fp8Static

X = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))


def test_bit_for_bit_what_a_loaded_artifact_computes_beyond_the_range_too() -> None:
    quantizer = Fp8Static(bits=8)
    quantizer.start(X[0])
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor", dynamic=False)
    assert torch.equal(quantizer(3 * X), fake_quantize(3 * X, quantizer.scale, None, args))


@pytest.mark.fast
def test_without_calibration() -> None:
    with pytest.raises(ValueError, match="static activations need calibration"):
        Fp8Static(bits=8)(X)
