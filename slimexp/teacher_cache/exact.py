"""The exact cache: what a teacher's output matrix reads, from which its logits at any temperature follow."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slimexp.loss.base import Outputs
from slimexp.model.base import Family
from slimexp.model.head import Head, head_of
from slimexp.teacher_cache.base import Form, TeacherCache, TeacherOutputs


class Exact(TeacherCache):
    """Keeps the teacher's last hidden states, in the type that it computes in; of a classifier, its logits."""

    name = "exact"

    def form(self, teacher: Family, student: Family) -> Form:
        head = head_of(teacher)
        if head is None and teacher.task != "classification":
            raise ValueError(
                f"the logits of {type(teacher.model).__name__} are not one product with a matrix, so its states say "
                "too little: leave out the teacher cache"
            )
        return States(head)


class States(Form):
    """Inputs of a head, or logits.

    Args:
        head: The teacher's head; ``None`` for a classifier.
    """

    def __init__(self, head: Head | None) -> None:
        self._head = head

    @property
    def head(self) -> Head | None:
        return self._head

    def settings(self) -> dict[str, Any]:
        return {"form": Exact.name}

    def encode(self, outputs: TeacherOutputs, *, seed: int) -> Tensor:
        return outputs.states

    def outputs(self, taught: Tensor) -> Outputs:
        return Outputs(taught if self._head is None else self._head.logits(self._head.module(taught)))

    def to(self, device: torch.device, dtype: torch.dtype | None) -> None:
        if self._head is None:
            return
        nn.Module.to(self._head.module, device=device, dtype=dtype)
        if self._head.shift is not None:
            self._head = replace(self._head, shift=self._head.shift.to(device))
