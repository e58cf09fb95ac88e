"""Tokenizer, config and generation settings mean the same, or the model is refused; what plain transformers answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from slimexp import artifact
from slimexp.model.base import Family
from slimexp.model.encoder import Encoder
from slimexp.model.special_tokens import align
from slimexp.model.tokenizer import Bytes, unchanged

Make = Callable[..., Any]
ROWS = [("one", "one!", 0), ("two words and more", "2", 1), ("x", "yes", 0), ("seven, and eight", "no", 1)]
BART = {"model_type": "bart", "d_model": 32, "decoder_start_token_id": 1, "forced_eos_token_id": None}


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
@pytest.mark.parametrize("wrong", [100, -1, 10**6])
def test_grades_do_not_depend_on_the_batch_whatever_the_padding_was_said_to_be(
    task: str, wrong: int, tiny: Make
) -> None:
    """Padding with another id than the one that is stripped wrote 'a' behind every short answer of a batch."""
    family: Family = tiny(task)
    family.model.config.pad_token_id = wrong
    if family.model.can_generate():
        family.model.generation_config.pad_token_id = wrong
        family.model.generation_config.eos_token_id = list(range(1, 130))  # rows end at different lengths
    family = type(family)(family.model, family.tokenizer, max_length=16)
    alone = family.predict(ROWS, batch_size=1)
    for size in (2, 3, 16):
        got = family.predict(ROWS, batch_size=size)
        if task == "causal_lm":
            assert [row[1:] for row in got] == [row[1:] for row in alone]
            assert [row[0] for row in got] == pytest.approx([row[0] for row in alone], rel=1e-5)
        else:
            assert got == alone


def test_a_decoder_model_that_classifies_reads_the_last_real_token() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_labels=2, pad_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    tokenizer = Bytes().build([])
    family = Encoder(model, tokenizer, max_length=32)
    batch = family.encode(ROWS)
    logits = family.forward(batch)[0]
    for row, (text, *_), got in zip(range(4), ROWS, logits, strict=True):
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            alone = model(input_ids=ids).logits[0]
        torch.testing.assert_close(got, alone, rtol=1e-4, atol=1e-5, msg=f"row {row}")


@pytest.mark.parametrize(
    ("config", "generation", "start"),
    [
        ({"decoder_start_token_id": None}, {"decoder_start_token_id": 7}, 7),
        ({"decoder_start_token_id": 7}, {"decoder_start_token_id": None}, 7),
        ({"decoder_start_token_id": -1}, {"decoder_start_token_id": 5}, 5),
        ({"decoder_start_token_id": None}, {"decoder_start_token_id": None}, 0),  # T5 starts from its padding
    ],
)
def test_a_decoder_starts_from_one_token(
    config: dict[str, Any], generation: dict[str, Any], start: int, tiny: Make, tmp_path: Path
) -> None:
    family: Family = tiny("seq2seq")
    for holder, values in ((family.model.config, config), (family.model.generation_config, generation)):
        for name, value in values.items():
            setattr(holder, name, value)
    family = type(family)(family.model, family.tokenizer, max_length=16)
    assert family.model.config.decoder_start_token_id == start
    assert family.model.generation_config.decoder_start_token_id == start
    artifact.save(family, tmp_path / "a", dtype=torch.float32, stages=[])
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "a")  # what is shipped says the same
    assert plain.config.decoder_start_token_id == plain.generation_config.decoder_start_token_id == start
    ids = AutoTokenizer.from_pretrained(tmp_path / "a")("one", return_tensors="pt")["input_ids"]
    assert int(plain.generate(ids, max_new_tokens=2)[0, 0]) == start


def test_a_start_that_is_nowhere_or_two_is_refused(tiny: Make) -> None:
    family: Family = tiny("seq2seq")
    family.model.generation_config.decoder_start_token_id = 5
    with pytest.raises(
        ValueError, match=r"decoder_start_token_id is 0 in one of config\.json and generation_config\.json, and 5"
    ):
        align(family.model, family.tokenizer)
    family.model.config.model_type = "bart"
    family.model.config.decoder_start_token_id = family.model.generation_config.decoder_start_token_id = None
    family.model.config.bos_token_id = None
    with pytest.raises(ValueError, match=r"of this bart is neither in config\.json nor in generation_config\.json"):
        align(family.model, family.tokenizer)
    family.model.config.bos_token_id = 4  # as transformers falls back
    align(family.model, family.tokenizer)
    assert family.model.generation_config.decoder_start_token_id == 4


def test_generation_stops_where_targets_end(tiny: Make) -> None:
    family: Family = tiny("seq2seq")
    for configured, expected in (
        (None, 1),
        (9, [9, 1]),
        ([9, 8], [9, 8, 1]),
        (1, 1),
        ([1, 5], [1, 5]),
        ([-1], 1),
        (10**6, 1),
    ):
        family.model.generation_config.eos_token_id = configured
        align(family.model, family.tokenizer)
        assert family.model.generation_config.eos_token_id == expected


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tiny: Make) -> None:
    family: Family = tiny("causal_lm")
    family.tokenizer.add_tokens(["<one>", "<two>"])
    with pytest.raises(
        ValueError, match=r"2 tokens that the model has no embedding for, up to '<two>' with id 260 of 259"
    ):
        align(family.model, family.tokenizer)


def test_a_padding_token_without_an_embedding_is_never_used(tiny: Make) -> None:
    family: Family = tiny("causal_lm")
    family.tokenizer.add_special_tokens({"pad_token": AddedToken("[PAD]", special=True)})
    family.model.config.pad_token_id = None
    assert align(family.model, family.tokenizer) == family.tokenizer.eos_token_id


def test_positions_that_count_from_padding_need_that_padding(tiny: Make) -> None:
    family: Family = tiny("classification", model_type="roberta", pad_token_id=1, max_position_embeddings=80)
    family.model.config.pad_token_id = 2
    with pytest.raises(
        ValueError, match=r"positions of a roberta count from its padding, id 2 in config\.json, .* with id 0"
    ):
        align(family.model, family.tokenizer)


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_a_batch_leaves_the_tokenizer_as_it_was(task: str, tiny: Make, tmp_path: Path) -> None:
    family: Family = tiny(task)
    backend = family.tokenizer.backend_tokenizer
    for state in ("none", "cut"):
        if state == "cut":
            backend.enable_truncation(40)
            backend.enable_padding(length=48)
        before = backend.to_str()
        family.encode(ROWS)
        family.predict(ROWS, batch_size=2)
        family.token_ids(["x" * 99], truncate=False)
        assert backend.to_str() == before
        artifact.save(family, tmp_path / state, dtype=torch.float32, stages=[])
        saved = AutoTokenizer.from_pretrained(tmp_path / state).backend_tokenizer
        assert (saved.truncation, saved.padding) == (backend.truncation, backend.padding)


def test_the_side_that_is_cut_is_the_tokenizers(tiny: Make) -> None:
    family: Family = tiny("causal_lm", max_length=4)
    whole = family.tokenizer("abcdefgh")["input_ids"]
    assert family.token_ids(["abcdefgh"]) == [[*whole[:3], whole[-1]]]  # </s> stays
    family.tokenizer.truncation_side = "left"
    assert family.token_ids(["abcdefgh"]) == [whole[-4:]]


def test_what_fails_within_leaves_the_tokenizer_too(tiny: Make) -> None:
    tokenizer = tiny("causal_lm").tokenizer
    before = tokenizer.backend_tokenizer.to_str()
    with pytest.raises(KeyError), unchanged(tokenizer):
        tokenizer.backend_tokenizer.enable_truncation(3)
        raise KeyError
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("holder", ["config", "generation_config"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decoder_start_token_id", [0, 0]),
        ("pad_token_id", [0, 1]),
        *(
            (name, value)
            for name in ("decoder_start_token_id", "forced_bos_token_id")
            for value in ("0", True, 0.0, {})
        ),
        *((name, value) for name in ("bos_token_id", "pad_token_id") for value in ("x", 1.5)),
        *(("eos_token_id", value) for value in ("1", True, 1.0, [1, "2"], [[1]])),
    ],
    ids=str,
)
def test_ids_that_are_no_whole_numbers_are_refused(name: str, value: Any, holder: str, tiny: Make) -> None:
    family: Family = tiny("seq2seq")
    vars(getattr(family.model, holder))[name] = value
    family.tokenizer.tgt_lang = None  # as a translator's has, so that the language is looked for too
    with pytest.raises(ValueError, match=rf"^{name} in {holder}\.json must be (one )?whole numbers?, got ") as raised:
        type(family)(family.model, family.tokenizer, max_length=16)
    assert "\n" not in str(raised.value)


def test_a_list_of_one_id_is_that_id(tiny: Make) -> None:
    family: Family = tiny("seq2seq")
    for holder in (family.model.config, family.model.generation_config):
        vars(holder)["decoder_start_token_id"] = [7]
    family = type(family)(family.model, family.tokenizer, max_length=16)
    assert family.model.config.decoder_start_token_id == family.model.generation_config.decoder_start_token_id == 7
