import numpy as np
import pytest
import torch

from slimexp.importance.activation import Activation


@pytest.mark.fast
def test_against_a_float64_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    rows = [torch.randn(tokens, 8, generator=generator) for tokens in (3, 7, 1)]
    activation = Activation(rows=3)
    total = sum(activation.observe(weight, row) for row in rows[1:]) + activation.observe(weight, rows[0])
    tokens = np.concatenate([row.double().numpy() for row in rows])
    expected = np.abs(weight.double().numpy()) * np.abs(tokens).sum(0)
    np.testing.assert_allclose(activation.score(weight, total).numpy(), expected, rtol=1e-6)


@pytest.mark.fast
def test_a_small_weight_on_a_large_input_outlives_a_large_one_on_a_small() -> None:
    activation = Activation(rows=1)
    weight = torch.tensor([[1.0, 2.0]])
    scores = activation.score(weight, activation.observe(weight, torch.tensor([[8.0, 1.0], [0.0, 1.0]])))
    assert scores[0, 0] > scores[0, 1]
