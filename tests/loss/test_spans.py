"""Sums over spans and their first labels, by hand."""

import pytest
import torch

from slimexp.loss.base import Outputs
from slimexp.loss.spans import spans_of

pytestmark = pytest.mark.fast
LABELS = torch.tensor([[5, 6, 7, -100], [8, 9, -100, -100]])
SPANS = torch.tensor([[0, 0, 2, -1], [-1, 1, 1, -1]])  # the last 1 is at a label that is ignored
OTHER_LABELS = torch.tensor([[1, 2, 3], [4, 5, 6]])
OTHER_SPANS = torch.tensor([[0, 2, 2], [1, 1, -1]])


def test_slots_are_those_of_the_row() -> None:
    student = Outputs(torch.zeros(2, 4, 10), spans=SPANS)
    teacher = Outputs(torch.zeros(2, 3, 7), labels=OTHER_LABELS, spans=OTHER_SPANS)
    own, others, labels = spans_of(student, teacher, LABELS)
    assert own.count == others.count == 8 and labels is OTHER_LABELS
    assert own.sums(torch.arange(8.0)).tolist() == [1, 0, 2, 0, 0, 5, 0, 0]
    assert others.sums(torch.arange(6.0)).tolist() == [0, 0, 3, 0, 0, 7, 0, 0]
    assert own.firsts().tolist() == [0, 8, 2, 8, 8, 5, 8, 8]
    assert others.firsts().tolist() == [0, 6, 1, 6, 6, 3, 6, 6]


def test_of_the_same_tokens_each_label_is_a_span() -> None:
    outputs = Outputs(torch.zeros(2, 4, 10))
    own, others, labels = spans_of(outputs, outputs, LABELS)
    assert own is others and labels is LABELS
    assert own.sums(torch.ones(8)).tolist() == [1, 1, 1, 0, 1, 1, 0, 0]
    assert own.firsts().tolist() == [0, 1, 2, 8, 4, 5, 8, 8]
