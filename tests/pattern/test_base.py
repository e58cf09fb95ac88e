"""The contract of every pattern under conf/, in every scope it has."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.pattern.base import Pattern

SHAPES = [(8, 16), (16, 8), (4, 24)]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "unstructured": [{"scope": "layer"}, {"scope": "global"}, {"scope": "row"}],
    "n_m": [{"m": 2}, {"m": 4}, {"m": 8}],
    "block": [{"scope": "layer"}, {"scope": "global", "norm": 2}, {"height": 1, "width": 8}],
}
FILES = sorted(path.stem for path in (CONF_DIR / "pattern").glob("*.yaml"))


@pytest.fixture(params=[(name, values) for name in FILES for values in VARIANTS.get(name, [{}])], ids=str)
def pattern(request: pytest.FixtureRequest) -> Pattern:
    name, values = request.param
    return build(OmegaConf.load(CONF_DIR / "pattern" / f"{name}.yaml"), **values)


def layers(pattern: Pattern) -> list[tuple[Tensor, Tensor]]:
    """Scores and masks, all alive, of layers that compete."""
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES if pattern.across_layers else SHAPES[:1]
    return [(torch.rand(shape, generator=generator), torch.ones(shape, dtype=torch.bool)) for shape in shapes]


def keep(pattern: Pattern, sparsity: float, alive: list[Tensor] | None = None) -> list[Tensor]:
    scores, masks = map(list, zip(*layers(pattern), strict=True))
    return pattern.keep(scores, alive or masks, sparsity)


def units(pattern: Pattern, masks: list[Tensor]) -> Tensor:
    """[groups, units]: whether any entry is alive."""
    return torch.cat([pattern.split(mask).any(-1) for mask in masks], dim=1)


@pytest.mark.fast
def test_join_undoes_split(pattern: Pattern) -> None:
    for shape in SHAPES:
        x = torch.arange(shape[0] * shape[1]).reshape(shape)
        assert torch.equal(pattern.join(pattern.split(x), x.shape), x)


@pytest.mark.fast
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75, 0.9])
def test_every_group_reaches_the_target_within_one_unit(pattern: Pattern, sparsity: float) -> None:
    masks = keep(pattern, sparsity)
    dead = ~units(pattern, masks)
    assert (dead.sum(1) - sparsity * dead.shape[1]).abs().max() <= 0.5
    assert pattern.reached(masks, sparsity)


@pytest.mark.fast
def test_zero_sparsity_keeps_all(pattern: Pattern) -> None:
    assert all(mask.all() for mask in keep(pattern, 0.0))


@pytest.mark.fast
def test_what_stays_scores_higher_than_what_goes_in_its_group(pattern: Pattern) -> None:
    scores = [score for score, _ in layers(pattern)]
    of_units = torch.cat([pattern.unit_scores(pattern.split(score)) for score in scores], dim=1)
    kept = units(pattern, keep(pattern, 0.5))
    lowest_kept = of_units.masked_fill(~kept, torch.inf).amin(1)
    highest_gone = of_units.masked_fill(kept, -torch.inf).amax(1)
    assert (lowest_kept >= highest_gone).all()


@pytest.mark.fast
def test_units_live_and_die_whole(pattern: Pattern) -> None:
    for mask in keep(pattern, 0.5):
        parts = pattern.split(mask)
        assert torch.equal(parts.any(-1), parts.all(-1))


@pytest.mark.fast
def test_masks_are_monotone_in_sparsity_and_the_dead_stay_dead(pattern: Pattern) -> None:
    masks = [torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) > 0.2 for _, mask in layers(pattern)]
    for sparsity in (0.1, 0.3, 0.5, 0.75):
        later = keep(pattern, sparsity, masks)
        assert all(not (new & ~old).any() for old, new in zip(masks, later, strict=True))
        masks = later
        assert pattern.reached(masks, sparsity)


@pytest.mark.fast
def test_not_reached_while_a_group_is_short(pattern: Pattern) -> None:
    assert not pattern.reached([mask for _, mask in layers(pattern)], 0.5)


@pytest.mark.fast
@pytest.mark.parametrize("sparsity", [1.0, -0.5])
def test_a_target_out_of_range_is_refused(pattern: Pattern, sparsity: float) -> None:
    with pytest.raises(ValueError, match=rf"sparsity must be in \[0, 1\), got {sparsity}"):
        pattern.validate(sparsity)


@pytest.mark.fast
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_strips_decided_one_after_the_other_reach_the_target(pattern: Pattern, sparsity: float) -> None:
    if pattern.across_layers:
        pytest.skip("strips are of one layer")
    ((score, mask),) = layers(pattern)
    kept, at = torch.zeros_like(mask), 0
    for begin, end, share in pattern.strips(mask.shape, sparsity, about=6):
        assert begin == at < end
        kept[:, begin:end] = pattern.keep([score[:, begin:end]], [mask[:, begin:end]], share)[0]
        at = end
    assert at == mask.shape[1]
    dead = ~units(pattern, [kept])
    assert (dead.sum(1) - sparsity * dead.shape[1]).abs().max() <= 0.5
    assert pattern.reached([kept], sparsity)
