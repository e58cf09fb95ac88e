"""Gates on layers: the Lagrangian of the gap to the target, and weights that gates are folded into."""

import pytest
import torch
from torch import nn

from slimexp.importance.l0 import L0
from slimexp.technique.l0_gates import L0Gates
from slimexp.technique.masking import mask_of

pytestmark = pytest.mark.fast
GROUPS = [["a", "b"], ["c"]]


@pytest.fixture
def gating() -> L0Gates:
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 3) for name in "abc"}
    for layer in layers.values():
        mask_of(layer)  # as in pruning: gates are over masks
    return L0Gates(L0(lr=0.1, price=2.0), layers, GROUPS)


def expected_sparsity(gating: L0Gates) -> torch.Tensor:
    shut = {name: 1 - gate.open() for name, gate in gating._gates.items()}
    return torch.stack([torch.cat([shut[name].flatten() for name in names]).mean() for names in GROUPS])


def test_multipliers_rise_with_the_gap_of_each_group_and_the_penalty_with_them(gating: L0Gates) -> None:
    target = torch.tensor([0.5, 0.2])
    assert gating.penalty(target).item() == 0  # the multipliers start at 0
    gap = expected_sparsity(gating) - target
    gating.ascend(target)
    torch.testing.assert_close(gating.multipliers, 2.0 * torch.stack([gap, gap.square()]).detach())
    torch.testing.assert_close(gating.penalty(target), (2.0 * gap.square() + 2.0 * gap.square() * gap.square()).sum())


def test_multipliers_are_in_the_checkpoint_and_gates_are_the_layers_own(gating: L0Gates) -> None:
    assert [*gating.state_dict()] == ["multipliers"]
    assert {name: level.shape for name, level in gating.levels().items()} == dict.fromkeys("abc", (3, 4))


def test_folded_gates_are_in_the_weights_once(gating: L0Gates) -> None:
    layers = gating._layers
    for gate in gating._gates.values():
        gate.level.data[0] = -10.0  # shut for good
    gating.fold()
    folded = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    assert all((weight[0] == 0).all() and (weight[1:] != 0).all() for weight in folded.values())
    gating.fold()
    gating.remove()
    for name, layer in layers.items():
        assert torch.equal(layer.weight, folded[name]) and len(layer.parametrizations.weight) == 1
