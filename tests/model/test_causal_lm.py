from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from slimexp.loss.base import IGNORE
from slimexp.model import base
from slimexp.model.causal_lm import CausalLm, token_nats
from slimexp.model.tokenizer import Bpe

Tiny = Callable[..., Any]
ROWS = [("one", None, None), ("three and four and five and six", None, None), ("x", None, None), ("seven!", None, None)]


@torch.no_grad()
def test_labels_line_up_with_logits(tiny: Tiny) -> None:
    """The loss is the one that transformers computes itself, from labels that it shifts."""
    family: CausalLm = tiny("causal_lm")
    batch = family.encode(ROWS)
    logits, _ = family.forward(batch)
    loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE)
    unshifted = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE)
    expected = family.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=unshifted).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@torch.no_grad()
def test_predicts_nats_tokens_and_hits_of_the_whole_text(tiny: Tiny) -> None:
    family: CausalLm = tiny("causal_lm")
    for row, (nats, tokens, hits) in zip(ROWS, family.predict(ROWS, batch_size=3), strict=True):
        start = family.tokenizer.eos_token_id  # the byte tokenizer has no <s>
        ids = torch.tensor([[start, *family.tokenizer(row[0])["input_ids"]]])
        logs = family.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        assert tokens == ids.shape[1] - 1
        assert nats == pytest.approx(-logs.gather(1, ids[0, 1:, None]).sum().item(), rel=1e-5)
        assert hits == (logs.argmax(-1) == ids[0, 1:]).sum()


def test_a_tokenizer_that_starts_texts_itself_starts_them_once(tiny: Tiny) -> None:
    family: CausalLm = tiny("causal_lm")
    family.tokenizer = Bpe(vocab_size=300, characters=100).build(["some text"])
    ids = family.tokenizer(ROWS[1][0])["input_ids"]
    assert ids[0] == family.tokenizer.bos_token_id
    assert family.predict(ROWS, batch_size=2)[1][1] == len(ids) - 1


def test_order_and_values_hold_at_any_batch_size(tiny: Tiny) -> None:
    family: CausalLm = tiny("causal_lm", max_length=8)
    expected = family.predict(ROWS, batch_size=1)
    for batch_size in (2, 3, 64):
        for scored, reference in zip(family.predict(ROWS, batch_size=batch_size), expected, strict=True):
            assert scored == (pytest.approx(reference[0], rel=1e-5), *reference[1:])


@pytest.mark.parametrize("max_length", [2, 3, 5, 8, 31, 32, 33, 64])
def test_windows_count_every_token_once(tiny: Tiny, max_length: int) -> None:
    """A model that looks at the last token only gives the same nats however its text is cut."""
    family: CausalLm = tiny("causal_lm")
    for name, module in family.model.named_modules():
        if name.endswith("o_proj"):
            nn.init.zeros_(module.weight)
    whole = family.predict(ROWS, batch_size=4)
    family.max_length = max_length
    cut = family.predict(ROWS, batch_size=4)
    assert [row[1:] for row in cut] == [row[1:] for row in whole]
    assert [row[0] for row in cut] == [pytest.approx(row[0], rel=1e-5) for row in whole]


def test_a_text_of_one_token_predicts_nothing(tiny: Tiny) -> None:
    family: CausalLm = tiny("causal_lm")
    assert family.predict([("", None, None), ROWS[0]], batch_size=2)[0] == (0.0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [67, 49_152, 150_000])
def test_nats_are_those_of_float64_at_any_size_of_vocabulary(vocabulary: int, dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(vocabulary)
    logits = (4 * torch.randn(2, 41, vocabulary, generator=chance)).to(dtype)  # 82 tokens: several chunks, one not full
    labels = torch.randint(vocabulary, (2, 41), generator=chance)
    labels[1, 30:] = IGNORE
    exact = -logits.double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    nats = token_nats(logits, labels)
    assert nats.dtype == torch.float64 and (nats[labels == IGNORE] == 0).all()
    torch.testing.assert_close(nats, exact.masked_fill(labels == IGNORE, 0), rtol=0, atol=1e-9)


def test_a_pass_has_as_many_rows_as_its_logits_may_take(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    family: CausalLm = tiny("causal_lm")
    expected = family.predict(ROWS, batch_size=64)
    longest = len(family.tokenizer(ROWS[1][0])["input_ids"]) + 1
    rows: list[int] = []
    family.model.register_forward_pre_hook(
        lambda _, args, options: rows.append(len(options["input_ids"])), with_kwargs=True
    )
    words = family.model.config.vocab_size
    for limit, most in ((1, 1), (2 * longest * words, 2), (10**9, 4)):
        monkeypatch.setattr(base, "LOGITS", limit)
        rows.clear()
        for scored, reference in zip(family.predict(ROWS, batch_size=64), expected, strict=True):
            assert scored == (pytest.approx(reference[0], rel=1e-5), *reference[1:])
        assert max(rows) == most


def test_a_pass_for_what_layers_read_computes_the_last_logits_alone(tiny: Tiny) -> None:
    family: CausalLm = tiny("causal_lm")
    read: dict[str, torch.Size] = {}
    for name in ("model.layers.1.mlp.down_proj", "lm_head"):
        layer = family.model.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, x, name=name: read.update({name: x[0].shape}))
    batch = family.encode(ROWS)
    family.run(batch)
    rows, width = batch["input_ids"].shape
    assert read["model.layers.1.mlp.down_proj"][:2] == (rows, width) and read["lm_head"][:2] == (rows, 1)
