import pytest
import torch

from slimexp.pattern.unstructured import Unstructured

SCORES = [torch.tensor([[4.0, 3.0], [2.0, 1.0]]), torch.tensor([[8.0, 7.0], [6.0, 5.0]])]
ALIVE = [torch.ones(2, 2, dtype=torch.bool)] * 2


@pytest.mark.fast
def test_within_a_layer_the_lower_half_goes() -> None:
    (mask,) = Unstructured(scope="layer").keep(SCORES[:1], ALIVE[:1], 0.5)
    assert mask.tolist() == [[True, True], [False, False]]


@pytest.mark.fast
def test_within_a_row_each_gives_its_lower_half() -> None:
    (mask,) = Unstructured(scope="row").keep(SCORES[:1], ALIVE[:1], 0.5)
    assert mask.tolist() == [[True, False], [True, False]]


@pytest.mark.fast
def test_among_all_layers_the_weaker_layer_goes() -> None:
    first, second = Unstructured(scope="global").keep(SCORES, ALIVE, 0.5)
    assert not first.any() and second.all()


@pytest.mark.fast
def test_an_unknown_scope() -> None:
    with pytest.raises(ValueError, match="scope must be one of layer, global, row, got 'column'"):
        Unstructured(scope="column")  # type: ignore[arg-type]
