"""The masks on a model's layers, and how many zeros are in them."""

from collections.abc import Mapping

import torch

from slimexp.model.layer import Layer, latent, place
from slimexp.weight.attachment import Place, attach, attached
from slimexp.weight.mask import Mask


def mask_of(layer: Layer) -> Mask:
    """The mask on a layer's weight; where there is none, a new one is attached, all alive."""
    module, tensor = place(layer)
    for where, attachment in attached(module):
        if where == Place("", tensor) and isinstance(attachment, Mask):
            return attachment
    weight = latent(layer)
    mask = Mask(shape=weight.shape).to(weight.device)
    attach(module, tensor, mask)
    return mask


def sparsity(masks: Mapping[str, Mask]) -> float:
    """Share of zeros in all masks together, in [0, 1]."""
    alive = sum(int(torch.count_nonzero(mask.mask)) for mask in masks.values())
    return 1 - alive / sum(mask.mask.numel() for mask in masks.values())
