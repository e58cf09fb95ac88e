import pytest
import torch

from slimexp.quantizer.activation import Ranged
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.fp8_static import Fp8Static
from slimexp.quantizer.fp8_token import Fp8Token
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.pact import Pact
from slimexp.quantizer.static import Static
from slimexp.quantizer.ternary import Ternary
from slimexp.quantizer.token import Token

X = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.fast
@pytest.mark.parametrize("kind", [Token, Fp8Token])
def test_the_scale_of_a_token_does_not_depend_on_other_tokens(kind: type[Quantizer]) -> None:
    quantizer = kind(bits=8, group_size=None)
    louder = X * torch.tensor([1.0, 100.0, 1.0])[:, None, None]
    assert torch.equal(quantizer(louder)[[0, 2]], quantizer(X)[[0, 2]])
    assert quantizer.grid(X).scale.shape == (3, 5, 1)


@pytest.mark.fast
@pytest.mark.parametrize("kind", [Static, Fp8Static])
def test_a_calibrated_scale_is_one_for_all_and_stays(kind: type[Quantizer]) -> None:
    quantizer = kind(bits=8, range=MinMax) if kind is Static else kind(bits=8)  # type: ignore[call-arg]
    quantizer.start(X)
    scale = quantizer.grid(X).scale
    assert scale.numel() == 1 and quantizer.frozen
    assert torch.equal(quantizer.grid(100 * X).scale, scale)
    assert quantizer(100 * X).abs().max() <= max(map(abs, quantizer.limits)) * scale  # larger inputs are clipped


@pytest.mark.fast
@pytest.mark.parametrize("kind", [Static, Pact])
@pytest.mark.parametrize(
    ("range", "message"),
    [
        (Fp8, "Fp8 has no range of integers that activations could take: for range choose minmax, percentile or mse"),
        (Token, "Token has no range of integers"),
        (Static, "Static has no range of integers"),
        (Ternary, "range: Ternary: bits must be 2, got 8: for range choose minmax"),
    ],
)
def test_a_range_that_is_none_of_integers(kind: type[Ranged], range: type[Quantizer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(bits=8, range=range)
