"""Latency: seconds per request, relative to the incoming model, measured where the stage runs."""

import statistics
import time
from collections.abc import Callable

import torch

from slimexp.budget.base import Budget, Cost, SearchSpace
from slimexp.cut.shape import Shape
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family


class Latency(Budget):
    """Seconds of one forward pass: the median of the ratios of interleaved pairs of smaller and whole model.

    The cost is a linear estimate: how much halving each axis alone saves is measured, and savings are added up. The
    shape found is then measured itself, and searched for again where the estimate was too optimistic. Times depend on
    the machine and its load, so that another run may find another shape; a resumed run keeps its own. What users of an
    artifact will see is what the measure ``latency`` reports.

    Args:
        ratio: The longest time allowed per request over that of the whole model, in (0, 1).
        batch: Number of sequences per batch.
        tokens: Number of tokens per sequence; 1 is the cost of one decoding step without its cache.
        pairs: Number of pairs timed.
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
        saved = {}  # share of the time per unit
        for key, options in counted(space.lattice.items(), "time of axis"):
            if len(options) > 1:
                fewer = options[len(options) // 2]
                shape = {**whole, key: fewer}
                saved[key] = max(1 - self._ratio(space, shape), 0.0) / (whole[key] - fewer)
        return lambda shape: 1 - sum(saving * (whole[key] - shape[key]) for key, saving in saved.items())

    def reached(self, space: SearchSpace, shape: Shape, cost: Cost) -> float:
        return self._ratio(space, shape)

    def _ratio(self, space: SearchSpace, shape: Shape) -> float:
        """Seconds of the model of ``shape`` over those of the whole one."""
        whole, small = self._timer(space.family), self._timer(space.build(shape))
        whole(), small()  # warm-up
        return statistics.median(_ratio(whole, small, whole_first=pair % 2 == 0) for pair in range(self.pairs))

    def _timer(self, family: Family) -> Callable[[], float]:
        """A function that runs one forward pass and returns its seconds."""
        tokens = min(self.tokens, family.max_length)
        ids = torch.arange(self.batch * tokens, device=family.device).view(self.batch, tokens) % 97 + 3
        batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

        @torch.inference_mode()
        def seconds() -> float:
            start = _now(family.device)
            family.forward(batch)
            return _now(family.device) - start

        return seconds


def _ratio(whole: Callable[[], float], small: Callable[[], float], *, whole_first: bool) -> float:
    """Seconds of ``small`` over those of ``whole``, run in either order."""
    if whole_first:
        whole_seconds = whole()
        return small() / whole_seconds
    small_seconds = small()
    return small_seconds / whole()


def _now(device: torch.device) -> float:
    """Seconds of a clock, once the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
