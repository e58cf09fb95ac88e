import pytest
import torch

from slimexp.importance.movement import Movement


@pytest.mark.fast
def test_weights_that_move_away_from_zero_score_higher() -> None:
    weight = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    gradient = torch.tensor([[-0.5, 0.5, 0.5, -0.5]])  # descent moves against it: up, down, down, up
    movement = Movement()
    assert movement.score(weight, movement.learn(weight, gradient)).tolist() == [[0.5, -0.5, 0.5, -0.5]]


@pytest.mark.fast
def test_is_the_sum_of_the_paper_in_float64() -> None:
    """Sanh et al. 2020, eq. 3, without the learning rate: S = -sum_t dL/dW W."""
    weights, gradients = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    movement = Movement()
    parts = [movement.learn(w.float(), g.float()) for w, g in zip(weights, gradients, strict=True)]
    scores = movement.score(weights[-1].float(), torch.stack(parts).sum(0))
    assert torch.allclose(scores.double(), -(weights * gradients).sum(0), atol=1e-5)
