"""The contract of every importance under conf/."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.importance.base import Calibrated, Gated, Importance, Learned

FILES = sorted((CONF_DIR / "importance").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def importance(request: pytest.FixtureRequest) -> Importance:
    path: Path = request.param
    return build(OmegaConf.load(path))


def weight(*, seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)))


def score(importance: Importance, weight: Tensor, *, scale: float = 1.0) -> Tensor:
    """Scores, after a calibration on two rows, or two steps of training, if need be."""
    if isinstance(importance, Gated):
        return importance.score(weight.detach(), importance.gate(weight.shape).level.detach() * scale)
    if isinstance(importance, Learned):
        steps = [scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)) for step in (1, 2)]
        return importance.score(weight.detach(), sum(importance.learn(weight.detach(), step) for step in steps))
    if not isinstance(importance, Calibrated):
        return importance.score(weight)
    rows, columns = weight.shape
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, columns), (5, columns)] if importance.observes == "input" else [(rows, columns)] * 2
    seen = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    parts = [importance.observe(weight.detach(), observed) for observed in seen]
    assert all(part.dtype == torch.float32 for part in parts)
    return importance.score(weight, parts[0] + parts[1])


@pytest.mark.fast
def test_scores_are_finite_and_shaped_like_the_weight(importance: Importance) -> None:
    scores = score(importance, weight())
    assert scores.shape == (6, 8)
    assert scores.isfinite().all()


@pytest.mark.fast
def test_same_weight_same_scores(importance: Importance) -> None:
    assert torch.equal(score(importance, weight()), score(importance, weight()))


@pytest.mark.fast
def test_no_gradient_leaks_and_the_weight_is_left_alone(importance: Importance) -> None:
    parameter = weight()
    assert not score(importance, parameter).requires_grad
    assert torch.equal(parameter, weight())


@pytest.mark.fast
def test_a_weight_of_zeros_has_scores(importance: Importance) -> None:
    assert score(importance, torch.zeros(3, 4)).isfinite().all()


@pytest.mark.fast
def test_a_layer_that_never_woke_has_scores(importance: Importance) -> None:
    assert score(importance, weight(), scale=0.0).isfinite().all()


@pytest.mark.fast
@pytest.mark.parametrize("name", ["wanda", "taylor"])
def test_no_rows_no_calibration(name: str) -> None:
    with pytest.raises(ValueError, match="rows of training text to calibrate on must be >= 1, got 0"):
        build(OmegaConf.load(CONF_DIR / "importance" / f"{name}.yaml"), rows=0)
