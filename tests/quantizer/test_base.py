"""The contract of every quantizer under conf/."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import cast

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.quantizer.activation import Calibrated
from slimexp.quantizer.base import Quantizer

FILES = sorted((CONF_DIR / "quantizer").glob("*.yaml"))
SHAPE = (2, 6, 32)


@cache
def compose_quantizer(name: str) -> DictConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(overrides=[f"+quantizer={name}"]).quantizer


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def make(request: pytest.FixtureRequest) -> partial[Quantizer]:
    path: Path = request.param
    factory = build(compose_quantizer(path.stem))
    if not issubclass(factory.func, Calibrated):
        return factory
    return partial(_calibrated, factory)


def _calibrated(factory: Callable[..., Quantizer], **settings: object) -> Quantizer:
    quantizer = factory(**settings | {"group_size": None})
    quantizer.start(tensor())
    return quantizer


@pytest.fixture(params=[True, False], ids=["symmetric", "affine"])
def symmetric(request: pytest.FixtureRequest, make: partial[Quantizer]) -> bool:
    if not request.param and kind(make).symmetric_only:
        pytest.skip("has no affine variant")
    return request.param


def kind(make: partial[Quantizer]) -> type[Quantizer]:
    factory = make.args[0] if make.args else make
    return cast(type[Quantizer], factory.func)


def tensor(*, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def widths(make: partial[Quantizer]) -> range:
    return kind(make).widths


@pytest.mark.fast
@pytest.mark.parametrize("group_size", [None, 8, "tensor"])
def test_levels(make: partial[Quantizer], symmetric: bool, group_size: int | str | None) -> None:
    for bits in widths(make):
        quantizer = make(bits=bits, group_size=group_size, symmetric=symmetric)
        values = quantizer(tensor())
        assert all(len(group.unique()) <= 2**bits for group in quantizer.granularity.split(values).flatten(0, -2))
        assert values.shape == SHAPE


@pytest.mark.fast
@pytest.mark.parametrize("group_size", [None, 8, "tensor"])
def test_integers_stand_for_the_values(make: partial[Quantizer], symmetric: bool, group_size: int | str | None) -> None:
    for bits in widths(make):
        quantizer = make(bits=bits, group_size=group_size, symmetric=symmetric)
        x = tensor() + 0.3
        grid = quantizer.grid(x)
        integers = quantizer.integers(x, grid)
        assert integers.dtype == quantizer.stored
        assert quantizer.limits[0] <= integers.float().min() <= integers.float().max() <= quantizer.limits[1]
        assert torch.equal(quantizer.values(integers, grid), quantizer.round(x, grid))


@pytest.mark.fast
def test_grid_points_stay_where_they_are(make: partial[Quantizer], symmetric: bool) -> None:
    for bits in widths(make):
        quantizer = make(bits=bits, group_size=None, symmetric=symmetric)
        x = tensor() + 0.3
        grid = quantizer.grid(x)
        on_grid = quantizer.round(x, grid)
        assert torch.equal(quantizer.round(on_grid, grid), on_grid)


@pytest.mark.fast
def test_a_frozen_grid_no_longer_follows_and_is_loaded_again(make: partial[Quantizer], symmetric: bool) -> None:
    if kind(make).dynamic or make.args:
        pytest.skip("is taken from every input, or frozen already")
    quantizer = make(bits=widths(make)[0], group_size=8, symmetric=symmetric)
    quantizer.freeze(tensor())
    expected = quantizer.grid(tensor())
    for again in (quantizer, make(bits=widths(make)[0], group_size=8, symmetric=symmetric)):
        again.load_state_dict(quantizer.state_dict())
        grid = again.grid(9 * tensor(seed=1))
        assert torch.equal(grid.scale, expected.scale)
        assert (grid.zero is None) == symmetric
        assert symmetric or torch.equal(grid.zero, expected.zero)


@pytest.mark.fast
def test_no_grid_for_numbers_that_are_not_finite(make: partial[Quantizer]) -> None:
    with pytest.raises(ValueError, match="a grid needs finite numbers"):
        make(bits=widths(make)[0], group_size=None).start(torch.full(SHAPE, torch.nan))


@pytest.mark.fast
def test_error_is_at_most_half_a_step_and_a_clip(make: partial[Quantizer]) -> None:
    for bits in widths(make):
        quantizer = make(bits=bits, group_size=None)
        x = tensor()
        grid = quantizer.grid(x)
        low, high = quantizer.limits
        clipped = torch.clamp(x / grid.scale, low - 0.5, high + 0.5) * grid.scale
        steps = (quantizer.round(x, grid) - clipped).abs() / grid.scale.abs()
        half: float | torch.Tensor = 0.5
        if quantizer.stored.is_floating_point:  # 3 digits behind the leading one, down to 2^-9
            half = (clipped / grid.scale).abs().log2().floor().clamp(min=-6).exp2() / 2**4
        assert (steps <= 1.002 * half).all()


@pytest.mark.fast
def test_zero_stays_zero(make: partial[Quantizer], symmetric: bool) -> None:
    x = (tensor() + 0.3) * (tensor(seed=1) > 0)
    for bits in widths(make):
        quantizer = make(bits=bits, group_size=None, symmetric=symmetric)
        assert (quantizer(x)[x == 0] == 0).all()
        assert (quantizer(torch.zeros(SHAPE)) == 0).all()


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_are_kept(make: partial[Quantizer], dtype: torch.dtype) -> None:
    values = make(bits=widths(make)[-1], group_size=None)(tensor().to(dtype))
    assert values.shape == SHAPE
    assert values.dtype == dtype


@pytest.mark.fast
def test_gradient_is_that_of_the_identity(make: partial[Quantizer]) -> None:
    x, upstream = tensor().requires_grad_(), tensor(seed=1)
    quantizer = make(bits=widths(make)[-1], group_size=8)
    quantizer(x).backward(upstream)
    if learned := list(quantizer.parameters()):  # clipped entries have a gradient for these alone
        assert all(parameter.grad.isfinite().all() for parameter in learned)
        low, high = (limit * quantizer.grid(x).scale for limit in quantizer.limits)
        upstream = upstream * ((x >= low) & (x <= high))
    assert torch.equal(x.grad, upstream)


@pytest.mark.fast
def test_inactive_is_the_identity(make: partial[Quantizer]) -> None:
    quantizer = make(bits=widths(make)[0], group_size=None)
    quantizer.active = False
    assert torch.equal(quantizer(tensor()), tensor())


@pytest.mark.fast
def test_rebuilt_from_json(make: partial[Quantizer]) -> None:
    quantizer = make(bits=widths(make)[0], group_size=8)
    again = type(quantizer)(**json.loads(json.dumps(quantizer.arguments())))
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again(tensor()), quantizer(tensor()))


@pytest.mark.fast
@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range(make: partial[Quantizer], bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits must be {widths(make)[0]}.*, got {bits}"):
        make(bits=bits, group_size=None)
