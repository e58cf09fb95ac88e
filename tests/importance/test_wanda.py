import numpy as np
import pytest
import torch

from slimexp.importance.wanda import Wanda


@pytest.mark.fast
def test_against_a_float64_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    rows = [torch.randn(tokens, 8, generator=generator) for tokens in (3, 7, 1)]
    wanda = Wanda(rows=3)
    total = sum(wanda.observe(weight, row) for row in rows[1:]) + wanda.observe(weight, rows[0])
    tokens = np.concatenate([row.double().numpy() for row in rows])
    expected = np.abs(weight.double().numpy()) * np.linalg.norm(tokens, axis=0)
    np.testing.assert_allclose(wanda.score(weight, total).numpy(), expected, rtol=1e-6)


@pytest.mark.fast
def test_a_small_weight_on_a_large_input_outlives_a_large_one_on_a_small() -> None:
    """The example of figure 1: magnitude would keep the other."""
    wanda = Wanda(rows=1)
    weight = torch.tensor([[1.0, 2.0]])
    scores = wanda.score(weight, wanda.observe(weight, torch.tensor([[8.0, 1.0], [0.0, 1.0]])))
    assert scores[0, 0] > scores[0, 1]


@pytest.mark.fast
def test_memory_is_that_of_one_number_per_input() -> None:
    assert Wanda(rows=1).observe(torch.zeros(16, 8), torch.ones(100, 8)).shape == (8,)


@pytest.mark.fast
def test_half_precision_is_summed_in_full() -> None:
    observed = torch.full((70_000, 1), 1.0, dtype=torch.float16)  # their sum is beyond float16
    assert Wanda(rows=1).observe(torch.ones(1, 1, dtype=torch.float16), observed).item() == 70_000
