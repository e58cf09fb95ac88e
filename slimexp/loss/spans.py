"""Labels of two models in spans of text: sums over the labels of a span, and the place of the first."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slimexp.loss.base import IGNORE, Outputs


@dataclass(frozen=True)
class Spans:
    """The spans of a batch, in slots: as many for each row as the student has labels in one.

    Attributes:
        slots: Slot of each label of a model, [N]; the last slot of all is for labels of no span.
        count: Number of slots, that last one left out.
    """

    slots: Tensor
    count: int

    def sums(self, values: Tensor) -> Tensor:
        """Sums of values [N] over the labels of each slot, [count]."""
        return values.new_zeros(self.count + 1).index_add(0, self.slots, values)[:-1]

    def firsts(self) -> Tensor:
        """Place of the first label of each slot, [count]; that of no label, N, where a slot is empty."""
        places = torch.arange(len(self.slots), device=self.slots.device)
        none = torch.full((self.count + 1,), len(self.slots), device=self.slots.device)
        return none.scatter_reduce(0, self.slots, places, "amin")[:-1]


def spans_of(student: Outputs, teacher: Outputs, labels: Tensor) -> tuple[Spans, Spans, Tensor]:
    """Spans of both models, and the labels of the teacher.

    Args:
        student: Its outputs.
        teacher: Its outputs, of the same batch.
        labels: Labels of the student, [B, T] or [B].
    """
    if teacher.labels is None or teacher.spans is None or student.spans is None:
        count = labels.numel()
        slots = torch.arange(count, device=labels.device).view_as(labels)
        same = Spans(torch.where(labels == IGNORE, count, slots).flatten(), count)
        return same, same, labels
    rows, each = labels.shape
    own, others = (
        _slots(given, of_labels, each)
        for given, of_labels in ((student.spans, labels), (teacher.spans, teacher.labels))
    )
    return Spans(own, rows * each), Spans(others, rows * each), teacher.labels


def _slots(spans: Tensor, labels: Tensor, each: int) -> Tensor:
    """Slots of the labels of a model, [N], of so many slots for each row."""
    rows = torch.arange(len(spans), device=spans.device)[:, None]
    return torch.where((spans < 0) | (labels == IGNORE), len(spans) * each, rows * each + spans).flatten()
