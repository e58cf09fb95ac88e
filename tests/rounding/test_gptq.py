"""GPTQ against a slow surgeon in float64, and against rounding to nearest."""

from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.quantizer.minmax import MinMax
from slimexp.rounding.gptq import GPTQ

ROWS, COLUMNS, DAMPENING = 12, 24, 0.01


def layer() -> tuple[Tensor, Tensor]:
    """A weight, and inputs whose channels depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(200, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator)
    return torch.randn(ROWS, COLUMNS, generator=generator), mixed * torch.logspace(-1, 1, COLUMNS)


def slow(weight: Tensor, x: Tensor, alive: Tensor, quantizer: MinMax, *, act_order: bool) -> np.ndarray:
    """The weight after columns were rounded one by one, in float64, inverting the rest of the Hessian at each."""
    w, tokens = weight.double().numpy() * alive.numpy(), x.double().numpy()
    size, shared = quantizer.granularity.columns(COLUMNS), quantizer.granularity.per_tensor
    hessian = tokens.T @ tokens
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(COLUMNS)
    hessian += DAMPENING * np.diag(hessian).mean() * np.eye(COLUMNS)
    fits = MinMax(bits=quantizer.bits, group_size="tensor" if shared else None)
    static = {g: fits.fitted(torch.from_numpy(w[:, g : g + size]).float()) for g in range(0, COLUMNS, size)}
    grids: dict[int, Any] = static if act_order else {}
    rest = list(order)
    for j in order:
        group = j // size * size
        if group not in grids:
            grids[group] = fits.fitted(torch.from_numpy((w * alive.numpy())[:, group : group + size]).float())
        inverse = np.linalg.inv(hessian[np.ix_(rest, rest)])
        column = torch.from_numpy(w[:, [j]])
        rounded = fits.round(column, grids[group]).numpy()[:, 0] * alive.numpy()[:, j]
        w[:, rest] -= np.outer((w[:, j] - rounded) / inverse[0, 0], inverse[0])
        w[:, j] = rounded
        rest.remove(j)
    return w


@pytest.mark.fast
@pytest.mark.parametrize("group_size", [None, 8, 12, "tensor"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("before", [0.0, 0.3])
def test_against_a_slow_surgeon_in_float64(group_size: int | str | None, act_order: bool, before: float) -> None:
    weight, x = layer()
    alive = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) >= before
    gptq = GPTQ(rows=2, dampening=DAMPENING, act_order=act_order)
    quantizer = MinMax(bits=4, group_size=group_size)
    hessian = gptq.observe(weight, x[:150]) + gptq.observe(weight, x[150:])
    new, grid = gptq.round(weight, alive, hessian, quantizer)
    expected = slow(weight, x, alive, quantizer, act_order=act_order)
    np.testing.assert_allclose(new.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (new[~alive] == 0).all()
    quantizer.keep(grid)
    assert torch.equal(quantizer(new), new)


@pytest.mark.fast
@pytest.mark.parametrize("group_size", [None, 8, "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["minmax", "percentile", "mse", "hqq"])
def test_the_new_weight_is_on_the_grid_that_is_kept(name: str, symmetric: bool, group_size: int | str | None) -> None:
    """Whatever a grid is fitted by: fitted again to all groups at once it may be another."""
    weight, x = layer()
    gptq = GPTQ(rows=2, dampening=DAMPENING, act_order=False)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        factory = build(compose(overrides=[f"+quantizer={name}"]).quantizer)
    quantizer = factory(bits=3, group_size=group_size, symmetric=symmetric)
    new, grid = gptq.round(weight, torch.ones_like(weight), gptq.observe(weight, x), quantizer)
    quantizer.keep(grid)
    assert torch.equal(quantizer(new), new)
    assert quantizer.granularity.split(weight).shape[:-1] == grid.scale.shape


@pytest.mark.fast
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_outputs_change_less_than_by_rounding_to_nearest(bits: int, act_order: bool) -> None:
    weight, x = layer()
    x = x / torch.logspace(-1, 1, COLUMNS)  # else the last columns, for which none makes up, are all that counts
    gptq, quantizer = GPTQ(rows=2, dampening=DAMPENING, act_order=act_order), MinMax(bits=bits, group_size=8)
    new, _ = gptq.round(weight, torch.ones_like(weight), gptq.observe(weight, x), quantizer)
    assert ((new - weight) @ x.T).norm() < 0.8 * ((quantizer(weight) - weight) @ x.T).norm()


@pytest.mark.gpu
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8, "tensor"])
@pytest.mark.parametrize("act_order", [False, True])
def test_a_gpu_rounds_as_a_cpu_does(act_order: bool, group_size: int | str | None, symmetric: bool) -> None:
    """From the same Hessian; where a weight is half-way between two points, either is right."""
    weight, x = layer()
    gptq = GPTQ(rows=2, dampening=DAMPENING, act_order=act_order)
    hessian, alive = gptq.observe(weight, x), torch.ones_like(weight)
    quantizer = MinMax(bits=4, group_size=group_size, symmetric=symmetric)
    expected, grid = gptq.round(weight, alive, hessian, quantizer)
    new, of_gpu = gptq.round(weight.cuda(), alive.cuda(), hessian.cuda(), quantizer)
    torch.testing.assert_close(of_gpu.scale.cpu(), grid.scale, rtol=0.01, atol=0)
    assert (new.cpu() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rows": 0}, r"rounding\.rows must be >= 1, got 0"), ({"dampening": 0.0}, r"rounding\.dampening must be > 0")],
)
def test_wrong_values(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTQ(**({"rows": 2, "dampening": 0.01, "act_order": False} | settings))


@pytest.mark.fast
def test_inputs_that_are_not_finite_or_all_zero() -> None:
    weight, x = layer()
    gptq, quantizer = GPTQ(rows=2, dampening=DAMPENING, act_order=False), MinMax(bits=4, group_size=8)
    with pytest.raises(ValueError, match=r"raise rounding\.dampening"):
        gptq.round(weight, torch.ones_like(weight), gptq.observe(weight, x * torch.inf), quantizer)
    new, _ = gptq.round(weight, torch.ones_like(weight), gptq.observe(weight, 0 * x), quantizer)
    assert torch.equal(new, quantizer(weight))
