"""The contract of every importance under conf/."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from slimexp.config import CONF_DIR, build
from slimexp.importance.base import Importance

FILES = sorted((CONF_DIR / "importance").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def importance(request: pytest.FixtureRequest) -> Importance:
    path: Path = request.param
    return build(OmegaConf.load(path))


def weight(*, seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.fast
def test_scores_are_finite_and_shaped_like_the_weight(importance: Importance) -> None:
    scores = importance.score(weight())
    assert scores.shape == (6, 8)
    assert scores.isfinite().all()


@pytest.mark.fast
def test_same_weight_same_scores(importance: Importance) -> None:
    assert torch.equal(importance.score(weight()), importance.score(weight()))


@pytest.mark.fast
def test_no_gradient_leaks_and_the_weight_is_left_alone(importance: Importance) -> None:
    parameter = weight()
    assert not importance.score(parameter).requires_grad
    assert torch.equal(parameter, weight())


@pytest.mark.fast
def test_a_weight_of_zeros_has_scores(importance: Importance) -> None:
    assert importance.score(torch.zeros(3, 4)).isfinite().all()
