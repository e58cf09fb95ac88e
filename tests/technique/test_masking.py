"""Masks on layers: one per weight, and how many zeros are in them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from slimexp.technique.masking import mask_of, sparsity

pytestmark = pytest.mark.fast


def test_a_layer_gets_one_mask_and_is_unchanged_by_it() -> None:
    layer = nn.Linear(4, 3)
    weight = layer.weight.detach().clone()
    mask = mask_of(layer)
    assert mask.mask.shape == (3, 4) and torch.equal(layer.weight, weight)
    assert mask_of(layer) is mask
    mask.mask[0] = False
    assert (layer.weight[0] == 0).all() and torch.equal(layer.weight[1:], weight[1:])


def test_a_mask_goes_over_what_is_attached_already() -> None:
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    mask = mask_of(layer)
    assert [*layer.parametrizations["weight"]][-1] is mask and mask_of(layer) is mask


def test_the_share_of_zeros_counts_by_weight() -> None:
    masks = {"small": mask_of(nn.Linear(2, 5)), "large": mask_of(nn.Linear(9, 10))}
    masks["small"].mask.zero_()
    assert sparsity(masks) == pytest.approx(0.1)
