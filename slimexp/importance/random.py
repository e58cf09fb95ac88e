"""Random: the baseline that every other importance has to beat."""

import torch
from torch import Tensor

from slimexp.importance.base import Importance


class Random(Importance):
    """Uniform scores in [0, 1) that depend on ``seed`` and on the weight's own bits.

    Two layers of one shape get different scores; the same weight always gets the same scores, on any
    device.

    Args:
        seed: Seed of the scores.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def score(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        # an integer sum does not depend on the order in which a device adds
        bits = weight.detach().float().contiguous().view(torch.int32).sum(dtype=torch.int64).item()
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + int(bits)) % 2**63)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
