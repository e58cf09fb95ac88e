from types import SimpleNamespace

import pytest
import torch
from torch import nn

from slimexp.calibration.input_samples import PER_BATCH, input_values

BATCHES = [{"x": torch.arange(4.0)[None]}, {"x": torch.linspace(-9, 9, 3 * PER_BATCH).view(-1, 4)}]


def family(used: nn.Module, unused: nn.Module) -> SimpleNamespace:
    return SimpleNamespace(
        model=nn.ModuleList([used, unused]), device=torch.device("cpu"), run=lambda batch: used(batch["x"])
    )


@pytest.mark.fast
def test_few_values_are_kept_and_of_many_the_quantiles() -> None:
    layer = nn.Linear(4, 2)
    values = input_values(family(layer, nn.Linear(4, 2)), {"layer": layer}, BATCHES)["layer"]
    assert values[:4].tolist() == [0, 1, 2, 3]
    assert len(values) == 4 + PER_BATCH
    assert (values.min(), values.max()) == (-9, 9)
    assert values[4:].mean().abs() < 0.01
    assert not layer._forward_pre_hooks


@pytest.mark.fast
def test_a_layer_that_is_not_used() -> None:
    layer, other = nn.Linear(4, 2), nn.Linear(4, 2)
    with pytest.raises(ValueError, match="layer 'other' was never used in calibration"):
        input_values(family(layer, other), {"layer": layer, "other": other}, BATCHES)


@pytest.mark.fast
def test_inputs_that_are_not_finite() -> None:
    layer = nn.Linear(4, 2)
    batches = [BATCHES[0], {"x": torch.full((1, 4), torch.inf)}]
    with pytest.raises(ValueError, match="layer 'layer': its input holds NaN or infinity in calibration batch 1"):
        input_values(family(layer, nn.Linear(4, 2)), {"layer": layer}, batches)
