"""The contract of every quantizer under conf/."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from slimexp.config import CONF_DIR, build
from slimexp.quantizer.base import Granularity, Quantizer

FILES = sorted((CONF_DIR / "quantizer").glob("*.yaml"))
SHAPE = (2, 6, 32)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def make(request: pytest.FixtureRequest) -> Callable[..., Quantizer]:
    path: Path = request.param
    return build(OmegaConf.load(path))


def tensor(*, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.fast
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 8])
def test_levels(make: Callable[..., Quantizer], bits: int, group_size: int | None) -> None:
    quantizer = make(bits=bits, group_size=group_size)
    values = quantizer(tensor())
    for group in quantizer.granularity.split(values).flatten(0, -2):
        assert len(group.unique()) <= 2**bits


@pytest.mark.fast
@pytest.mark.parametrize("bits", range(2, 9))
def test_grid_points_stay_where_they_are(make: Callable[..., Quantizer], bits: int) -> None:
    quantizer = make(bits=bits, group_size=None)
    x = tensor()
    scale = quantizer.scale(x)
    on_grid = quantizer.round(x, scale)
    assert torch.equal(quantizer.round(on_grid, scale), on_grid)


@pytest.mark.fast
def test_error_is_at_most_half_a_step_and_a_clip(make: Callable[..., Quantizer]) -> None:
    quantizer = make(bits=8, group_size=None)
    x = tensor()
    steps = (quantizer(x) - x).abs() / quantizer.scale(x)
    assert steps.max() <= 0.501


@pytest.mark.fast
@pytest.mark.parametrize("bits", [2, 8])
def test_zero_stays_zero(make: Callable[..., Quantizer], bits: int) -> None:
    x = tensor() * (tensor(seed=1) > 0)
    quantizer = make(bits=bits, group_size=None)
    assert (quantizer(x)[x == 0] == 0).all()
    assert (quantizer(torch.zeros(SHAPE)) == 0).all()


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_are_kept(make: Callable[..., Quantizer], dtype: torch.dtype) -> None:
    values = make(bits=8, group_size=None)(tensor().to(dtype))
    assert values.shape == SHAPE
    assert values.dtype == dtype


@pytest.mark.fast
def test_gradient_is_that_of_the_identity(make: Callable[..., Quantizer]) -> None:
    x, upstream = tensor().requires_grad_(), tensor(seed=1)
    make(bits=3, group_size=8)(x).backward(upstream)
    assert torch.equal(x.grad, upstream)


@pytest.mark.fast
def test_inactive_is_the_identity(make: Callable[..., Quantizer]) -> None:
    quantizer = make(bits=2, group_size=None)
    quantizer.active = False
    assert torch.equal(quantizer(tensor()), tensor())


@pytest.mark.fast
def test_rebuilt_from_json(make: Callable[..., Quantizer]) -> None:
    quantizer = make(bits=4, group_size=8)
    again = type(quantizer)(**json.loads(json.dumps(quantizer.arguments())))
    assert torch.equal(again(tensor()), quantizer(tensor()))


@pytest.mark.fast
@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range(make: Callable[..., Quantizer], bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits must be in 2..8, got {bits}"):
        make(bits=bits, group_size=None)


@pytest.mark.fast
def test_group_size_must_divide_the_row() -> None:
    with pytest.raises(ValueError, match="group_size must divide the length of a row, got 5 for rows of 32"):
        Granularity(5).split(tensor())
    with pytest.raises(ValueError, match="group_size must be >= 1"):
        Granularity(0)
