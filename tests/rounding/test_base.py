"""The contract of every rounding under conf/."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.quantizer.minmax import MinMax
from slimexp.rounding.base import Rounding

pytestmark = pytest.mark.fast
FILES = sorted((CONF_DIR / "rounding").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def rounding(path: Path) -> Rounding:
    return build(OmegaConf.load(path))


def layer() -> tuple[Tensor, Tensor, Tensor]:
    """A weight [12, 16], which of it is alive, and inputs [60, 16]."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 16, generator=generator)
    return weight, torch.rand(12, 16, generator=generator) > 0.3, torch.randn(60, 16, generator=generator)


def statistic(rounding: Rounding, weight: Tensor, x: Tensor) -> Tensor:
    parts = [rounding.observe(weight, rows) for rows in (x[:20], x[20:])]
    assert all(part.dtype == torch.float32 and part.shape == parts[0].shape for part in parts)
    return rounding.merge(*parts)


@pytest.mark.parametrize("group_size", [None, 4, "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_new_weight_is_on_its_grid_and_zeros_stay(
    rounding: Rounding, group_size: int | str | None, symmetric: bool
) -> None:
    weight, alive, x = layer()
    quantizer = MinMax(bits=4, group_size=group_size, symmetric=symmetric)
    new, grid = rounding.round(weight, alive, statistic(rounding, weight, x), quantizer)
    assert new.dtype == torch.float32 and new.shape == weight.shape
    assert (new[~alive] == 0).all() and not quantizer.frozen
    quantizer.keep(grid)
    torch.testing.assert_close(quantizer(new), new)


def test_the_weight_is_left_alone_and_rounding_is_deterministic(rounding: Rounding) -> None:
    weight, alive, x = layer()
    before, quantizer = weight.clone(), MinMax(bits=4, group_size=4)
    first, second = (rounding.round(weight, alive, statistic(rounding, weight, x), quantizer)[0] for _ in range(2))
    assert torch.equal(weight, before) and torch.equal(first, second) and not torch.equal(first, weight * alive)


def test_a_weight_that_is_on_a_grid_stays(rounding: Rounding) -> None:
    weight, alive, x = layer()
    quantizer = MinMax(bits=4, group_size=4)
    rounded = quantizer(weight * alive)
    new, _ = rounding.round(rounded, alive, statistic(rounding, rounded, x), quantizer)
    torch.testing.assert_close(new, rounded)


def test_no_rows(path: Path) -> None:
    with pytest.raises(ValueError, match=r"rounding\.rows must be >= 1, got 0"):
        build(OmegaConf.load(path), rows=0)
