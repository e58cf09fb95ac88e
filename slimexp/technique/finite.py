"""Checks for NaN and infinity that do not wait for the device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EVERY = 16  # steps between two looks at what the device has computed: a bad run goes on for two such spans at most

Place = tuple[int, str]  # step, and what was checked there


class NonFiniteLoss(ValueError):
    """Training met a NaN or an infinity."""


class FiniteCheck:
    """Keeps numbers, and raises when it comes to know of one that is not finite.

    On a GPU they are copied to the host together every few steps, while training goes on, and read when they have
    arrived: a step starts no kernel for it. On a CPU they are read at once.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Place, Tensor]] = []  # not sent yet, in order
        self._arriving: tuple[list[Place], Tensor, torch.cuda.Event] | None = None

    def loss(self, value: Tensor, step: int) -> None:
        """Check a loss at an optimizer step.

        Raises:
            NonFiniteLoss: It, or a number of an earlier step, is not finite.
        """
        self._add((step, "loss"), value)

    def norm(self, value: Tensor, step: int) -> None:
        """Check the norm of the gradient at an optimizer step, its last number; raises as ``loss``."""
        self._add((step, "norm of the gradient"), value)
        self.look(value, step)

    def look(self, value: Tensor, step: int) -> None:
        """Look at what has arrived, once in a step, given any number on the device; raises as ``loss``."""
        if self._is_far(value):
            self._look(step)

    def settle(self) -> None:
        """Wait for the numbers of all steps so far; raises as ``loss``."""
        if self._arriving is not None:
            self._arriving[2].synchronize()
            _refuse(*self._arriving[:2])
            self._arriving = None
        if self._kept:
            _refuse([place for place, _ in self._kept], _stacked(self._kept))
            self._kept = []

    def _add(self, place: Place, value: Tensor) -> None:
        self._kept.append((place, value.detach()))
        if not self._is_far(value):
            self.settle()

    @staticmethod
    def _is_far(value: Tensor) -> bool:
        """Whether reading a value would wait for its device."""
        return value.device.type == "cuda"

    def _look(self, step: int) -> None:
        """Read what has arrived, and have more sent."""
        if self._arriving is not None and self._arriving[2].query():
            _refuse(*self._arriving[:2])
            self._arriving = None
        if self._arriving is None and step % EVERY == 0:
            numbers = _stacked(self._kept)
            copy = torch.empty_like(numbers, device="cpu", pin_memory=True)
            copy.copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving = [place for place, _ in self._kept], copy, event
            self._kept = []


def _stacked(kept: Sequence[tuple[Place, Tensor]]) -> Tensor:
    return torch.stack([value.double() for _, value in kept])


def _refuse(places: Sequence[Place], numbers: Tensor) -> None:
    """Raise for the first number that is not finite; what raised once raises again."""
    for (step, name), number in zip(places, numbers.tolist(), strict=True):
        if math.isfinite(number):
            continue
        shown = "nan" if math.isnan(number) else number
        raise NonFiniteLoss(
            f"{name} is {shown} at step {step}: lower optimizer.lr or clip_norm, which trains this stage anew; "
            "no artifact is written, and the last checkpoint before it is kept for a look"
        )
