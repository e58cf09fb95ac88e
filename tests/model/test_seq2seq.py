from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from slimexp.loss.base import IGNORE
from slimexp.model.seq2seq import Seq2Seq

Tiny = Callable[..., Any]
ROWS = [("one", "two!", None), ("three and four", "5", None), ("six", "seven or eight", None)]


@torch.no_grad()
def test_labels_line_up_with_logits(tiny: Tiny) -> None:
    """The loss is the one that transformers computes itself."""
    family: Seq2Seq = tiny("seq2seq")
    batch = family.encode(ROWS)
    logits, _ = family.forward(batch)
    loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE)
    assert loss.item() == pytest.approx(family.model(**batch).loss.item(), rel=1e-6)


@pytest.mark.parametrize("row", range(3))
@torch.no_grad()
def test_predicts_what_greedy_decoding_by_hand_gives(tiny: Tiny, row: int) -> None:
    family: Seq2Seq = tiny("seq2seq", max_length=12)
    batch = family.encode([ROWS[row]])
    written = torch.tensor([[family.model.config.decoder_start_token_id]])
    while written.shape[1] <= 12 and written[0, -1] != family.tokenizer.eos_token_id:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = family.model(**inputs, decoder_input_ids=written, use_cache=False).logits
        written = torch.cat([written, logits[:, -1:].argmax(-1)], dim=1)
    expected = family.tokenizer.decode(written[0], skip_special_tokens=True)
    assert family.predict([ROWS[row]], batch_size=1) == [expected]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_predictions_keep_the_order_of_the_rows(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    family: Seq2Seq = tiny("seq2seq")
    monkeypatch.setattr(family.model, "generate", lambda input_ids, **_: input_ids)  # says what it read
    assert family.predict(ROWS, batch_size=batch_size) == [row[0] for row in ROWS]


def test_predicting_nothing(tiny: Tiny) -> None:
    assert tiny("seq2seq").predict([], batch_size=2) == []
