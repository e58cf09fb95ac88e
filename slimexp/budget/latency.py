"""Latency: seconds per request over those of the model that came in, measured where the stage runs."""

import statistics
import time
from collections.abc import Callable

import torch

from slimexp.budget.base import Budget, Cost, SearchSpace
from slimexp.cut.shape import Shape
from slimexp.model.base import Batch, Family


class Latency(Budget):
    """One pass over a batch of random tokens: median of the ratios of interleaved pairs.

    The cost is a linear estimate: how much halving each axis alone saves is measured, and savings are added up. The
    shape that was solved for is then measured itself, and solved for again where the estimate was too hopeful. Times
    depend on the machine and on what else it does, so that another run may come to another shape; a resumed one keeps
    its own. What an artifact's users will see is what the measure ``latency`` says.

    Args:
        ratio: Most seconds per request over those of the whole model, in (0, 1).
        batch: Sequences at once.
        tokens: Of each; 1 is what one step of decoding costs without its cache.
        pairs: Of which the median counts.
    """

    unit = "x the latency"

    def __init__(self, *, ratio: float, batch: int, tokens: int, pairs: int) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"budget.ratio of seconds must be in (0, 1), got {ratio}")
        for name, value in (("batch", batch), ("tokens", tokens), ("pairs", pairs)):
            if value < 1:
                raise ValueError(f"budget.{name} must be >= 1, got {value}")
        self.limit = ratio
        self.batch = batch
        self.tokens = tokens
        self.pairs = pairs

    def cost(self, space: SearchSpace) -> Cost:
        whole = space.whole
        saved = {}
        for word, options in space.lattice.items():
            if len(options) > 1:
                fewer = options[len(options) // 2]
                shape = {**whole, word: fewer}
                saved[word] = max(1 - self._ratio(space, shape), 0.0) / (whole[word] - fewer)
        return lambda shape: 1 - sum(each * (whole[word] - shape[word]) for word, each in saved.items())

    def reached(self, space: SearchSpace, shape: Shape, cost: Cost) -> float:
        return self._ratio(space, shape)

    def _ratio(self, space: SearchSpace, shape: Shape) -> float:
        one, other = self._pass(space.family), self._pass(space.build(shape))
        one(), other()
        return statistics.median(_ratio(one, other, first=pair % 2 == 0) for pair in range(self.pairs))

    def _pass(self, family: Family) -> Callable[[], float]:
        tokens = min(self.tokens, family.max_length)
        ids = torch.arange(self.batch * tokens, device=family.device).view(self.batch, tokens) % 97 + 3
        batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

        @torch.inference_mode()
        def seconds() -> float:
            began = _now(family.device)
            family.forward(batch)
            return _now(family.device) - began

        return seconds


def _ratio(whole: Callable[[], float], small: Callable[[], float], *, first: bool) -> float:
    """Seconds of ``small`` over those of ``whole``, which goes first or second."""
    if first:
        dense = whole()
        return small() / dense
    taken = small()
    return taken / whole()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
