import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.percentile import Percentile
from slimexp.quantizer.static import Static

X = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))


def started(seen: torch.Tensor) -> Static:
    quantizer = Static(bits=8, range=MinMax)
    quantizer.start(seen)
    return quantizer


def test_bit_for_bit_what_a_loaded_artifact_computes_beyond_the_range_too() -> None:
    quantizer = started(X[0])
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor", dynamic=False)
    assert torch.equal(quantizer(3 * X), fake_quantize(3 * X, quantizer.scale, None, args))


@pytest.mark.fast
def test_the_range_is_that_of_all_that_was_seen() -> None:
    assert started(X).scale.item() == pytest.approx(X.abs().max().item() / 127, rel=0.01)
    clipped = Static(bits=8, range=lambda **settings: Percentile(**settings, percentile=90))
    clipped.start(X)
    assert clipped.scale.item() == pytest.approx(X.abs().quantile(0.9).item() / 127, rel=0.01)


@pytest.mark.fast
def test_without_calibration() -> None:
    with pytest.raises(ValueError, match="static activations need calibration"):
        Static(bits=8, range=MinMax)(X)
    with pytest.raises(ValueError, match="static activations need calibration"):
        Static(bits=8).start(X)
