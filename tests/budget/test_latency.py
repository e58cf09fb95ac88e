import pytest

from slimexp.budget.base import SearchSpace
from slimexp.budget.latency import Latency
from slimexp.cut.shape import Shape


def latency(**values: float) -> Latency:
    return Latency(**{"ratio": 0.8, "batch": 1, "tokens": 4, "pairs": 2, **values})  # type: ignore[arg-type]


@pytest.mark.fast
def test_savings_of_single_axes_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def ratio(_: Latency, __: SearchSpace, shape: Shape) -> float:
        return 0.7 if shape["decoder"] == 2 else 1.1 if shape["hidden"] == 8 else 0.9

    monkeypatch.setattr(Latency, "_ratio", ratio)
    lattice = {"decoder": [4, 3, 2, 1], "ffn": [64, 32], "hidden": [16, 8], "heads": [2]}
    space = SearchSpace(family=None, lattice=lattice, count=lambda s: 0, build=lambda s: None)  # type: ignore[arg-type, return-value]
    cost = latency().cost(space)
    assert cost(space.whole) == 1
    assert cost({**space.whole, "decoder": 3}) == pytest.approx(0.85)
    assert cost({"decoder": 2, "ffn": 32, "hidden": 8, "heads": 2}) == pytest.approx(0.6)  # slower hidden saves nothing


@pytest.mark.fast
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 1.0}, r"budget\.ratio of seconds must be in \(0, 1\), got 1\.0"),
        ({"pairs": 0}, r"budget\.pairs must be >= 1, got 0"),
        ({"tokens": 0}, r"budget\.tokens must be >= 1, got 0"),
    ],
)
def test_what_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latency(**values)
