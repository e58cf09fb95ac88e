import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.pact import Pact

X = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
UPSTREAM = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))


def started(bits: int = 8) -> Pact:
    quantizer = Pact(bits=bits, range=MinMax)
    quantizer.start(torch.tensor([-1.5, 1.0]))
    return quantizer


@pytest.mark.fast
def test_gradients_are_those_of_the_paper() -> None:
    quantizer, x = started(), X.clone().requires_grad_()
    quantizer(x).backward(UPSTREAM)
    scale = quantizer.grid(X).scale.item()
    below, above = -128 * scale > X, 127 * scale < X
    assert below.any() and above.any()
    assert torch.equal(x.grad, UPSTREAM * ~(below | above))
    # the clipped values are -128 and 127 times share times the first scale
    expected = scale * (127 * UPSTREAM[above].sum() - 128 * UPSTREAM[below].sum())
    assert quantizer.share.grad.item() == pytest.approx(expected.item(), rel=1e-4)


def test_bit_for_bit_what_a_loaded_artifact_computes() -> None:
    quantizer = started()
    quantizer.share.data.fill_(0.77)
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor", dynamic=False)
    assert torch.equal(quantizer(X), fake_quantize(X, quantizer.grid(X).scale, None, args))


@pytest.mark.fast
def test_a_bound_that_learns_lowers_the_error() -> None:
    quantizer = started()
    optimizer = torch.optim.Adam([quantizer.share], lr=0.05)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        (error := (quantizer(X) - X).square().sum()).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.fast
def test_the_bound_is_loaded_again() -> None:
    quantizer = started()
    quantizer.share.data.fill_(2)
    again = Pact(**quantizer.arguments())
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again(X), quantizer(X))


@pytest.mark.fast
def test_without_calibration() -> None:
    with pytest.raises(ValueError, match="static activations need calibration"):
        Pact(bits=8, range=MinMax)(X)
