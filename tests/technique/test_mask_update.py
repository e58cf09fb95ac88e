"""Masks of a model are brought to a share of their target, group by group or block by block."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.importance.magnitude import Magnitude
from slimexp.importance.wanda import Wanda
from slimexp.pattern.unstructured import Unstructured
from slimexp.technique.mask_update import MaskUpdate

Make = Callable[..., Any]


@pytest.fixture
def update(tiny: Make) -> Make:
    """Scope (and importance) -> the masks of a tiny model, with 0.5 as every target."""

    def make(scope: str = "layer", importance: Any = None) -> MaskUpdate:
        family = tiny("causal_lm")
        return MaskUpdate(
            family,
            family.compressible(),
            importance=importance or Magnitude(),
            pattern=Unstructured(scope=scope),
            sparsity=0.5,
        )

    return make


def zeros(update: MaskUpdate) -> dict[str, float]:
    return {name: 1 - mask.mask.float().mean().item() for name, mask in update.masks.items()}


@pytest.mark.parametrize(("scope", "groups"), [("layer", 14), ("global", 1)])
def test_groups_reach_their_share_and_are_then_not_short_of_it(update: Make, scope: str, groups: int) -> None:
    masks = update(scope)
    assert len(masks.groups()) == groups and masks.short_of(0.0) == []
    for share in (0.4, 1.0):
        assert masks.short_of(share) == masks.groups()
        for names in masks.groups():
            masks.choose(names, share, {})
        assert masks.short_of(share) == []
        sizes = {name: mask.mask.numel() for name, mask in masks.masks.items()}
        dead = sum(part * sizes[name] for name, part in zeros(masks).items())
        assert dead / sum(sizes.values()) == pytest.approx(0.5 * share, abs=0.01)
    assert (len(set(zeros(masks).values())) == 1) is (scope == "layer")


def test_a_layer_with_a_target_of_its_own(update: Make) -> None:
    masks = update()
    first, second, *_ = masks.masks
    masks.targets[first] = 0.25
    masks.choose([first], 1.0, {})
    masks.choose([second], 1.0, {})
    assert zeros(masks)[first] == 0.25 and zeros(masks)[second] == 0.5


def test_a_candidate_changes_nothing_and_is_what_would_be_chosen(update: Make) -> None:
    masks = update()
    name = next(iter(masks.masks))
    candidate = masks.candidate(name, 0.5, {})
    assert masks.masks[name].mask.all()
    masks.choose([name], 1.0, {})
    assert torch.equal(masks.masks[name].mask, candidate)


def test_block_by_block_updates_the_layers_it_is_called_for(update: Make) -> None:
    masks = update(importance=Wanda(rows=2))
    names = list(masks.masks)[3:]
    batches = [masks.family.encode([(text, None, None)]) for text in ("one two", "three")]
    masks.block_by_block(names, 1.0, batches, device=torch.device("cpu"))
    assert all(part == (0.5 if name in names else 0.0) for name, part in zeros(masks).items())


def test_regrown_weights_start_from_zero_where_the_gradient_is_largest(update: Make) -> None:
    masks = update()
    for names in masks.groups():
        masks.choose(names, 1.0, {})
    before = {name: mask.mask.clone() for name, mask in masks.masks.items()}
    gradients = {name: torch.rand_like(layer.weight) for name, layer in masks.layers.items()}
    masks.regrow(1.0, share=0.2, statistics={}, gradients=gradients)
    for name, mask in masks.masks.items():
        revived = mask.mask & ~before[name]
        assert revived.any() and (~mask.mask).sum() == (~before[name]).sum()
        assert (masks.layers[name].parametrizations.weight.original[revived] == 0).all()
        assert gradients[name][revived].min() >= gradients[name][~mask.mask].max()


def test_a_score_that_is_not_finite_names_its_layer(update: Make) -> None:
    masks = update()
    name = next(iter(masks.masks))
    masks.layers[name].parametrizations.weight.original.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"Magnitude gave scores of layer '{name}' that are not finite"):
        masks.choose([name], 1.0, {})
