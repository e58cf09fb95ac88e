"""Terms of the objective over the rows of all devices together."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slimexp.host import process_group
from slimexp.loss.base import Ratio


def across_devices(ratios: Mapping[str, Ratio]) -> dict[str, Tensor]:
    """Name -> term of a batch whose rows are split among devices.

    Its value is that of the whole batch, the same on every device. Its gradient is that of the device's own rows, times
    the number of devices, so that the mean of the gradients, which the strategy takes, is the gradient of the term: a
    mean of the devices' means would weigh labels by how many their device happens to have.

    Args:
        ratios: Name -> sums over the rows of this device; the names and lengths are the same on all.
    """
    devices = process_group.size()
    if devices == 1:
        return {name: ratio.mean() for name, ratio in ratios.items()}
    parts = [part.detach().float() for ratio in ratios.values() for part in (ratio.numerator, ratio.denominator)]
    sums = iter(process_group.add_up(torch.cat(parts)).split([len(part) for part in parts]))
    terms = {}
    for name, ratio in ratios.items():
        numerator, denominator = next(sums), next(sums)
        own = devices * Ratio(ratio.numerator, denominator).mean()
        terms[name] = own + (Ratio(numerator, denominator).mean() - own).detach()
    return terms
