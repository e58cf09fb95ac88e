import pytest
import torch

from slimexp.loss.base import Outputs
from slimexp.loss.hidden import HiddenStates

LABELS = torch.zeros(1, 4, dtype=torch.long)


def states(*values: float, width: int = 3) -> Outputs:
    """One stack whose layers are constant."""
    return Outputs(torch.zeros(1, 4, 2), {"decoder": tuple(torch.full((4, width), value) for value in values)})


@pytest.mark.fast
def test_layers_are_matched_evenly_first_to_first_and_last_to_last() -> None:
    teacher = states(1.0, 2.0, 3.0, 4.0, 5.0)  # embedding and four blocks
    loss = HiddenStates(weight=1.0)
    assert loss(states(1.0, 3.0, 5.0), teacher, LABELS, 0.0).mean().item() == 0
    assert loss(states(1.0, 5.0), teacher, LABELS, 0.0).mean().item() == 0
    assert loss(states(1.0, 2.0, 4.0, 5.0), teacher, LABELS, 0.0).mean().item() == 0


@pytest.mark.fast
def test_is_relative_to_the_teacher() -> None:
    value = HiddenStates(weight=1.0)(states(1.0, 8.0), states(2.0, 10.0), LABELS, 0.0)
    assert value.mean().item() == pytest.approx((0.25 + 0.04) / 2)


@pytest.mark.fast
def test_other_widths_are_refused_with_a_way_out() -> None:
    with pytest.raises(
        ValueError,
        match=r"width 3 cannot be held against .* width 6: set projection=true of the loss",
    ):
        HiddenStates(weight=1.0)(states(1.0, 2.0), states(1.0, 2.0, width=6), LABELS, 0.0)
