"""The contract of every smoothing under conf/."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.model.scaling import Scaling
from slimexp.quantizer.minmax import MinMax
from slimexp.smoothing.base import Readers, Smoothing, usable

pytestmark = pytest.mark.fast
FILES = sorted((CONF_DIR / "smoothing").glob("*.yaml"))
Layers = tuple[dict[str, Tensor], Tensor]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def smoothing(path: Path) -> Smoothing:
    return build(OmegaConf.load(path))


def readers(smoothing: Smoothing, layers: Layers, scaling: Scaling, *, strength: float = 1.0) -> Readers:
    weights, x = layers
    parts = [smoothing.observe(weights["a"], strength * rows) for rows in (x[:20], x[20:])]
    assert all(part.dtype == torch.float32 and part.shape == parts[0].shape for part in parts)
    statistic = smoothing.merge(*parts)
    return Readers(scaling, weights, statistic, dict.fromkeys(weights, MinMax(bits=4, group_size=None)))


@pytest.mark.parametrize("copies", [1, 2])
def test_scales_are_positive_and_finite_one_per_channel(
    smoothing: Smoothing, layers: Layers, scaling: Callable[..., Scaling], copies: int
) -> None:
    scales = smoothing.scales(readers(smoothing, layers, scaling(copies)))
    assert scales.shape == (layers[1].shape[1] // copies,)
    assert (scales > 0).all() and scales.isfinite().all() and not (scales == scales[0]).all()


def test_inputs_that_are_all_zero_scale_nothing(
    smoothing: Smoothing, layers: Layers, scaling: Callable[..., Scaling]
) -> None:
    scales = smoothing.scales(readers(smoothing, layers, scaling(), strength=0.0))
    assert torch.equal(scales, torch.ones_like(scales))


def test_the_order_of_rows_does_not_matter(smoothing: Smoothing, layers: Layers) -> None:
    weights, x = layers
    first, second = (smoothing.observe(weights["a"], rows) for rows in (x[:20], x[20:]))
    torch.testing.assert_close(smoothing.merge(first.clone(), second), smoothing.merge(second.clone(), first))


def test_weights_are_left_alone_and_ranges_only_shrink(
    smoothing: Smoothing, layers: Layers, scaling: Callable[..., Scaling]
) -> None:
    case = readers(smoothing, layers, scaling())
    weight = case.weights["a"]
    before = weight.clone()
    smoothing.scales(case)
    clipped = smoothing.clipped(weight, case.statistic, torch.ones(weight.shape[1]), case.quantizers["a"])
    assert torch.equal(weight, before)
    assert (clipped.abs() <= weight.abs()).all() and torch.equal(clipped.sign(), weight.sign())
    assert smoothing.clip or torch.equal(clipped, weight)


def test_no_rows(path: Path) -> None:
    with pytest.raises(ValueError, match=r"smoothing\.rows must be >= 1, got 0"):
        build(OmegaConf.load(path), rows=0)


def test_a_scale_that_no_float_holds_well_is_limited() -> None:
    scales = usable(torch.tensor([0.0, 1e-9, 2.0, 1e9, torch.inf, torch.nan, 3.0]), torch.tensor([True] * 6 + [False]))
    assert scales.tolist() == pytest.approx([1e-5, 1e-5, 2.0, 1e5, 1.0, 1.0, 1.0])
