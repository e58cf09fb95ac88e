"""A row has the same key in every batch, and no other row has it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slimexp.teacher_cache.row_key import label_mask, row_keys

Make = Callable[..., Any]
TEXTS: dict[str, list[tuple[str, str | None, int | None]]] = {
    "seq2seq": [("some text", "another", None), ("a", "two", None), ("a", "three", None), ("b", "two", None)],
    "causal_lm": [("some text", None, None), ("a", None, None), ("ab", None, None), ("b", None, None)],
    "classification": [("some text", None, 1), ("a", None, 1), ("a", None, 0), ("b", None, 1)],
}


@pytest.mark.parametrize("task", TEXTS)
def test_a_key_depends_on_the_row_and_not_on_its_batch(tiny: Make, task: str) -> None:
    family, rows = tiny(task), TEXTS[task]
    keys = row_keys(family.encode(rows))
    assert keys.dtype == np.uint64 and len(set(keys.tolist())) == len(rows)
    alone = np.concatenate([row_keys(family.encode([row], multiple=8)) for row in rows])
    assert np.array_equal(keys, alone)


def test_documents_of_a_packed_row_are_part_of_its_key(tiny: Make) -> None:
    family = tiny("causal_lm")
    assert family.packs()
    ids = np.arange(5, 15, dtype=np.int32)
    rows = [(ids, np.array(lengths, dtype=np.int32)) for lengths in ([10], [4, 6], [5, 5])]
    keys = row_keys(family.pack(rows))
    assert len(set(keys.tolist())) == 3
    assert np.array_equal(keys[1:2], row_keys(family.pack(rows[1:2], multiple=16)))


def test_labels_that_count(tiny: Make) -> None:
    batch = tiny("seq2seq").encode(TEXTS["seq2seq"])
    assert label_mask(batch).sum(1).tolist() == (batch["labels"] != -100).sum(1).tolist()
