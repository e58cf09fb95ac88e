import json

import pytest
import torch
from torch import nn

from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask, keep_mask, keep_mask_per_row

SCORES = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
NONE = torch.zeros(8, 16, dtype=torch.bool)


@pytest.mark.fast
def test_a_new_mask_changes_nothing() -> None:
    weight = torch.randn(3, 4)
    assert torch.equal(Mask(shape=(3, 4))(weight), weight)


@pytest.mark.fast
def test_rebuilt_from_json_and_state() -> None:
    mask = Mask(shape=(3, 4))
    mask.mask[1, 2] = False
    again = Mask(**json.loads(json.dumps(mask.arguments())))
    again.load_state_dict(mask.state_dict())
    assert torch.equal(again.mask, mask.mask)


@pytest.mark.fast
def test_exact_under_a_quantizer_through_50_steps_of_adamw_with_weight_decay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    mask = Mask(shape=layer.weight.shape)
    mask.mask.copy_(torch.rand(8, 16) > 0.5)
    attach(layer, "weight", mask)
    attach(layer, "weight", MinMax(bits=4, group_size=8))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    start = layer.weight.detach().clone()
    for _ in range(50):
        optimizer.zero_grad()
        loss = (layer(torch.randn(4, 16)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        assert (layer.weight[~mask.mask] == 0).all()
    assert not torch.equal(layer.weight, start)


@pytest.mark.fast
def test_masked_entries_get_no_gradient() -> None:
    layer = nn.Linear(4, 2)
    mask = Mask(shape=layer.weight.shape)
    mask.mask[0] = False
    attach(layer, "weight", mask)
    layer(torch.randn(3, 4)).sum().backward()
    gradient = layer.parametrizations.weight.original.grad
    assert (gradient[0] == 0).all() and (gradient[1] != 0).any()


@pytest.mark.fast
@pytest.mark.parametrize("keep", [0, 1, 77, 128])
def test_keeps_exactly_as_many_and_the_highest(keep: int) -> None:
    mask = keep_mask(SCORES, keep, NONE)
    assert mask.sum() == keep
    if 0 < keep < SCORES.numel():
        assert SCORES[mask].min() >= SCORES[~mask].max()


@pytest.mark.fast
def test_ties_do_not_change_the_count() -> None:
    assert keep_mask(torch.zeros(8, 16), 31, NONE).sum() == 31


@pytest.mark.fast
def test_frozen_entries_stay_out_however_high_their_score() -> None:
    frozen = SCORES > 0
    mask = keep_mask(SCORES, 10, frozen)
    assert mask.sum() == 10
    assert not (mask & frozen).any()
    assert torch.equal(keep_mask(SCORES, 128, frozen), ~frozen)


@pytest.mark.fast
@pytest.mark.parametrize("keep", [0, 1, 7, 16])
def test_every_row_by_itself_agrees_with_one_row_at_a_time(keep: int) -> None:
    frozen = torch.rand(8, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    mask = keep_mask_per_row(SCORES, keep, frozen)
    rows = zip(SCORES, frozen, strict=True)
    assert torch.equal(mask, torch.stack([keep_mask(row, keep, dead) for row, dead in rows]))


@pytest.mark.fast
def test_ties_do_not_change_the_count_of_a_row() -> None:
    assert (keep_mask_per_row(torch.zeros(8, 16), 5, NONE).sum(1) == 5).all()
