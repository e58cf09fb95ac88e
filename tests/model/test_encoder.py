from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from slimexp.loss.base import IGNORE
from slimexp.model.encoder import Encoder

Tiny = Callable[..., Any]
ROWS = [("one", None, 1), ("three and four", None, 0), ("five, six, seven", None, 1), ("eight", None, 0)]


@torch.no_grad()
def test_loss_is_that_of_transformers(tiny: Tiny) -> None:
    family: Encoder = tiny("classification")
    batch = family.encode(ROWS)
    logits, _ = family.forward(batch)
    assert logits.shape == (4, 2)
    assert cross_entropy(logits, batch["labels"]).item() == pytest.approx(family.model(**batch).loss.item(), rel=1e-6)


def test_rows_without_a_label_are_ignored(tiny: Tiny) -> None:
    assert tiny("classification").encode([("a", None, None), ("b", None, 1)])["labels"].tolist() == [IGNORE, 1]


@torch.no_grad()
def test_predicts_the_likeliest_class_in_the_order_of_the_rows(tiny: Tiny) -> None:
    family: Encoder = tiny("classification")
    with torch.no_grad():  # scores that differ from row to row
        family.model.classifier.weight.mul_(50)
        scores = torch.cat([family.forward(family.encode([row]))[0] for row in ROWS])
        family.model.classifier.bias.copy_(-scores.mean(0))
    expected = [family.forward(family.encode([row]))[0].argmax(-1).item() for row in ROWS]
    assert len(set(expected)) == 2
    for batch_size in (1, 2, 3, 64):
        assert family.predict(ROWS, batch_size=batch_size) == expected
