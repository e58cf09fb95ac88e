import numpy as np
import pytest
import torch

from slimexp.importance.taylor import Taylor


@pytest.mark.fast
def test_against_a_float64_reference() -> None:
    """A linear layer under squared error, whose gradient is ``2 (W x - y) x^T``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator).requires_grad_()
    rows = [(torch.randn(4, generator=generator), torch.randn(3, generator=generator)) for _ in range(5)]
    taylor, total, expected = Taylor(rows=5), torch.zeros(3, 4), np.zeros((3, 4))
    for x, y in rows:
        (gradient,) = torch.autograd.grad((weight @ x - y).square().sum(), weight)
        total += taylor.observe(weight.detach(), gradient)
        w, x64, y64 = weight.detach().double().numpy(), x.double().numpy(), y.double().numpy()
        expected += (2 * np.outer(w @ x64 - y64, x64) * w) ** 2
    np.testing.assert_allclose(taylor.score(weight.detach(), total).numpy(), expected, rtol=1e-4)


@pytest.mark.fast
def test_gradients_that_cancel_still_count() -> None:
    taylor, weight = Taylor(rows=2), torch.ones(1, 1)
    rows = [taylor.observe(weight, torch.tensor([[sign]])) for sign in (1.0, -1.0)]
    assert taylor.score(weight, rows[0] + rows[1]).item() == 2


@pytest.mark.fast
def test_half_precision_is_squared_in_full() -> None:
    tiny = torch.full((1, 1), 1e-3, dtype=torch.float16)  # (1e-6)^2 is 0 in float16
    assert Taylor(rows=1).observe(tiny, tiny).item() == pytest.approx(1e-12, rel=1e-2)
