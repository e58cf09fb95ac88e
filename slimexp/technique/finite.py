"""Checks for NaN and infinity that do not wait for the device."""

import math

import torch
from torch import Tensor

EVERY = 16  # steps between two looks at what the device has noticed: a bad run goes on for two such spans at most

_NAMES = ("loss", "norm of the gradient")


class NonFiniteLoss(ValueError):
    """Training met a NaN or an infinity."""


class FiniteCheck:
    """Notices the first number that is not finite, and raises when it comes to know.

    On a GPU the numbers are compared there, and the result is copied to the host while training goes on: it is read
    when it has arrived. On a CPU it is known at once.
    """

    def __init__(self) -> None:
        self._noticed: Tensor | None = None  # [names, 2]: the first such step, -1 where there is none, and the number
        self._arriving: tuple[Tensor, torch.cuda.Event] | None = None

    def loss(self, value: Tensor, step: int) -> None:
        """Check a loss at an optimizer step.

        Raises:
            NonFiniteLoss: It, or a number of an earlier step, is not finite.
        """
        self._add(0, value, step)

    def norm(self, value: Tensor, step: int) -> None:
        """Check the norm of the gradient at an optimizer step; raises as ``loss``."""
        self._add(1, value, step)

    def settle(self) -> None:
        """Wait for the numbers of all steps so far; raises as ``loss``."""
        if self._noticed is not None:
            self._arriving = None
            _refuse(self._noticed.cpu())

    def _add(self, row: int, value: Tensor, step: int) -> None:
        value = value.detach()
        if self._noticed is None or self._noticed.device != value.device:
            self._noticed = torch.full((len(_NAMES), 2), -1.0, dtype=torch.float64, device=value.device)
        number = value.double()
        now = torch.stack([torch.full_like(number, step), number])
        first = self._noticed[row, 0] < 0
        self._noticed[row] = torch.where(first & ~number.isfinite(), now, self._noticed[row])
        if not self._is_far(value):
            _refuse(self._noticed)
        elif row == len(_NAMES) - 1:
            self._look(step)

    @staticmethod
    def _is_far(value: Tensor) -> bool:
        """Whether reading a value would wait for its device."""
        return value.device.type == "cuda"

    def _look(self, step: int) -> None:
        """Read what has arrived, and have more sent."""
        if self._arriving is not None and self._arriving[1].query():
            arrived, self._arriving = self._arriving[0], None
            _refuse(arrived)
        if self._arriving is None and step % EVERY == 0:
            assert self._noticed is not None
            copy = torch.empty_like(self._noticed, device="cpu", pin_memory=True)
            copy.copy_(self._noticed, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving = copy, event


def _refuse(noticed: Tensor) -> None:
    rows = [(int(step), name, value) for name, (step, value) in zip(_NAMES, noticed.tolist(), strict=True) if step >= 0]
    if not rows:
        return
    step, name, value = min(rows, key=lambda row: row[0])
    shown = "nan" if math.isnan(value) else value
    raise NonFiniteLoss(
        f"{name} is {shown} at step {step}: lower optimizer.lr or clip_norm, which trains this stage anew; "
        "no artifact is written, and the last checkpoint before it is kept for a look"
    )
