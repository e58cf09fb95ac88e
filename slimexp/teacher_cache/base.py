"""The base class of teacher caches: in which form a teacher's outputs are kept, and for which losses."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimexp.loss.base import LabelLoss, Loss, Outputs
from slimexp.loss.sample import Layout
from slimexp.model.base import Family
from slimexp.model.head import Head

TAUGHT = "taught"  # name in a batch of what the cache holds of its rows: [B, T, ...], zeros where no label counts


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher computes at N labels.

    Attributes:
        states: What its head reads, [N, D]; where there is none, its logits, [N, C].
        head: Its head.
    """

    states: Tensor
    head: Head | None

    def logits(self, some: slice) -> Tensor:
        """Logits of some of them, in float32."""
        states = self.states[some]
        return (states if self.head is None else self.head.logits(self.head.module(states))).float()


class Form(ABC):
    """The form in which a cache keeps the outputs of one teacher.

    Attributes:
        estimated: Whether losses are estimated from what is kept, so that ``estimates`` has something to say.
    """

    estimated: bool = False

    @property
    @abstractmethod
    def head(self) -> Head | Layout | None:
        """What makes of kept outputs, [N, ...], what losses read; ``None`` where they are logits."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What tells kept outputs from those of another form, as JSON."""

    @abstractmethod
    def encode(self, outputs: TeacherOutputs, *, seed: int) -> Tensor:
        """What is kept, and what a batch then holds of N labels, [N, ...].

        Args:
            outputs: The teacher's, at these labels.
            seed: Of what is random in it; the same for the same rows.
        """

    @abstractmethod
    def outputs(self, taught: Tensor) -> Outputs:
        """Outputs of the teacher, whole, of what a batch holds."""

    def estimates(self, student: Tensor, teacher: Tensor, kept: Tensor) -> dict[str, tuple[float, float]]:
        """Temperature -> sums of a divergence as it is estimated from kept outputs, and as it is.

        Args:
            student: Logits of the student, [N, V].
            teacher: Logits of the teacher, [N, V].
            kept: What ``encode`` made of them, [N, ...].
        """
        return {}

    def to(self, device: torch.device, dtype: torch.dtype | None) -> None:  # noqa: B027 (most leave nothing)
        """Move what is left of the teacher, and give its weights a type."""


class TeacherCache(ABC):
    """How the outputs of a teacher are kept.

    Args:
        folder: Folder of the cache; ``None`` for one in the runs folder that is named by what it holds.
        epochs: Of text that is new in every epoch: number of epochs that are kept, which training goes over again.

    Attributes:
        name: Of the form, as descriptions of caches have it.
    """

    name: str

    def __init__(self, *, folder: str | None, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"epochs of a teacher cache must be >= 1, got {epochs}")
        self.folder = folder
        self.epochs = epochs

    def check(self, losses: Mapping[str, Loss]) -> None:
        """Refuse losses that read what is not kept.

        Raises:
            ValueError: Names the loss, and the way out.
        """
        if not any(loss.needs_teacher for loss in losses.values()):
            raise ValueError("no loss reads the teacher, so there is nothing to cache: leave out the teacher cache")
        for name, loss in losses.items():
            if loss.needs_teacher and (loss.needs_hidden or not isinstance(loss, LabelLoss)):
                why = (
                    "reads logits at the tokens of a teacher of another tokenizer, and a cache keeps those at the "
                    "student's tokens"
                    if loss.aligns
                    else "reads inner states of the teacher, and a cache keeps its outputs alone"
                )
                raise ValueError(
                    f"losses.{name} {why}: leave out the loss (~pipeline.<stage>.losses.{name}) or the cache"
                )

    @abstractmethod
    def form(self, teacher: Family, student: Family) -> Form:
        """The form of a teacher's outputs.

        Args:
            teacher: The teacher.
            student: The student.

        Raises:
            ValueError: This teacher's outputs cannot be kept so; the message says why, and the way out.
        """
