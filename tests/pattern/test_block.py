from typing import Any

import pytest
import torch

from slimexp.pattern.block import Block

SETTINGS: dict[str, Any] = {"height": 2, "width": 2, "norm": 1, "scope": "layer"}


@pytest.mark.fast
def test_rectangles_die_together_and_only_the_weakest() -> None:
    scores = torch.tensor([[1.0, 1.0, 5.0, 5.0], [1.0, 2.0, 5.0, 5.0]])
    (mask,) = Block(**SETTINGS).keep([scores], [torch.ones(2, 4, dtype=torch.bool)], 0.5)
    assert mask.tolist() == [[False, False, True, True]] * 2


@pytest.mark.fast
@pytest.mark.parametrize(("norm", "left_stays"), [(1, False), (2, True)])
def test_the_norm_decides_between_one_large_weight_and_many_small(norm: int, left_stays: bool) -> None:
    magnitudes = torch.tensor([[3.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # L1: 3 and 4, L2: 3 and 2
    (mask,) = Block(**SETTINGS | {"norm": norm}).keep([magnitudes], [torch.ones(2, 4, dtype=torch.bool)], 0.5)
    assert mask[:, :2].all().item() is left_stays
    assert mask[:, 2:].all().item() is not left_stays


@pytest.mark.fast
def test_dead_entries_add_nothing_to_their_block() -> None:
    scores = torch.tensor([[9.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]])
    alive = torch.ones(2, 4, dtype=torch.bool)
    alive[0, 0] = False
    (mask,) = Block(**SETTINGS).keep([scores], [alive], 0.5)
    assert mask.tolist() == [[False, False, True, True]] * 2


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0}, "height and width of a block must be >= 1, got 0 and 2"),
        ({"norm": 3}, "norm must be 1 or 2, got 3"),
        ({"scope": "row"}, "scope must be one of layer, global, got 'row'"),
    ],
)
def test_wrong_values(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Block(**SETTINGS | settings)


@pytest.mark.fast
def test_a_block_that_does_not_divide_the_weight() -> None:
    with pytest.raises(ValueError, match="blocks must divide the weight, got 2 x 2 for 4 x 7"):
        Block(**SETTINGS).split(torch.zeros(4, 7))
