"""The contract of every allocation under conf/."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from slimexp.allocation.base import Allocation, BitAllocation, SparsityAllocation
from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.mask import Mask, keep_mask

pytestmark = pytest.mark.fast
FILES = sorted((CONF_DIR / "allocation").glob("*.yaml"))
KINDS = (SparsityAllocation, BitAllocation)
SIZES = {"small": (4, 8), "large": (16, 8), "tall": (32, 8)}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def allocation(path: Path) -> Allocation:
    return build(OmegaConf.load(path))


def weights() -> dict[str, torch.Tensor]:
    """Of three layers; those of the second are ten times as large, so that its zeros and its rounding cost more."""
    generator = torch.Generator().manual_seed(0)
    scales = {"large": 10.0}
    return {name: scales.get(name, 1.0) * torch.randn(shape, generator=generator) for name, shape in SIZES.items()}


def test_it_is_of_one_kind(allocation: Allocation) -> None:
    """Techniques take one kind and refuse the other."""
    assert sum(isinstance(allocation, kind) for kind in KINDS) == 1
    assert allocation.rows >= 1


def test_sparsities_meet_the_target_within_the_grid(allocation: Allocation) -> None:
    if not isinstance(allocation, SparsityAllocation):
        pytest.skip("allocates bits")
    tensors, masks = weights(), {name: Mask(shape=shape) for name, shape in SIZES.items()}

    def keep(name: str, sparsity: float) -> torch.Tensor:
        size = tensors[name].numel()
        return keep_mask(tensors[name].abs(), size - round(sparsity * size), ~masks[name].mask)

    def loss() -> float:
        return float(sum((tensors[name] - mask(tensors[name])).square().sum() for name, mask in masks.items()))

    growth = allocation.scan(masks, keep=keep, loss=loss)
    assert all(mask.mask.all() for mask in masks.values())
    assert growth.keys() == masks.keys()
    assert all(len(values) == len(allocation.sparsities) for values in growth.values())
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    shares = allocation.shares(growth, sizes, 0.5)
    assert sum(share * sizes[name] for name, share in shares.items()) == pytest.approx(0.5 * sum(sizes.values()), abs=1)
    assert all(0 <= share <= allocation.sparsities[-1] + 1 / sizes[name] for name, share in shares.items())
    assert shares["large"] == min(shares.values()) < 0.5


@pytest.mark.parametrize("bits", [2, 4])
def test_widths_fit_the_budget(allocation: Allocation, bits: int) -> None:
    if not isinstance(allocation, BitAllocation) or not allocation.scans:
        pytest.skip("allocates sparsity, or takes widths as they are given")
    tensors, before = weights(), weights()

    def cost() -> float:
        return float(sum((tensor - before[name]).square().sum() for name, tensor in tensors.items()))

    costs = allocation.scan(tensors, quantizer=lambda _, width: MinMax(bits=width, group_size=None), cost=cost)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
    assert costs.keys() == tensors.keys()
    assert all(len(values) == len(allocation.widths) for values in costs.values())
    stored = {
        name: {width: tensor.numel() * width for width in {*allocation.widths, bits}}
        for name, tensor in tensors.items()
    }
    widths = allocation.choose(costs, stored, sum(taken[bits] for taken in stored.values()))
    assert {*widths.values()} <= {*allocation.widths}
    assert sum(stored[name][width] for name, width in widths.items()) <= sum(taken[bits] for taken in stored.values())
    if bits == allocation.widths[0]:
        assert {*widths.values()} == {bits}
    else:
        assert widths["large"] == max(widths.values()) > bits


def test_no_rows(path: Path) -> None:
    if "rows" not in OmegaConf.load(path):
        pytest.skip("scans nothing")
    with pytest.raises(ValueError, match="rows of training text to scan with must be >= 1, got 0"):
        build(OmegaConf.load(path), rows=0)
