"""Layers are found by what their weights are."""

import numpy as np
import pytest
import torch

from slimexp.format.by_value import ByValue
from slimexp.kernel.base import Packed


def layer(seed: int, rows: int = 4, columns: int = 6) -> Packed:
    chance = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-8, 8, (rows, columns), generator=chance).to(torch.int8)
    return Packed(numbers, torch.rand(rows, 2, generator=chance) + 0.5, None, 4, None, None)


@pytest.mark.fast
def test_a_weight_and_its_transpose() -> None:
    layers = {"a": layer(0), "b": layer(1)}
    by_value = ByValue(layers)
    weight = layers["b"].weight().numpy()
    assert by_value.find(weight)[::2] == ("b", False) and by_value.find(weight.T)[::2] == ("b", True)
    assert by_value.find(weight + np.float32(1e-6)) is None
    with pytest.raises(ValueError, match="no weight of the quantized layer 'a'"):
        by_value.check_all_found()
    by_value.find(layers["a"].weight().numpy())
    by_value.check_all_found()


@pytest.mark.fast
def test_one_weight_of_two_layers_is_there_for_both() -> None:
    by_value = ByValue({"a": layer(0), "b": layer(0)})
    assert by_value.find(layer(0).weight().numpy()) is not None
    by_value.check_all_found()


@pytest.mark.fast
def test_a_symmetric_matrix_is_as_it_is() -> None:
    square = Packed(torch.eye(3).to(torch.int8), torch.ones(3, 1), None, 4, None, None)
    assert ByValue({"a": square}).find(np.eye(3, dtype=np.float32)).transposed is False
