"""Translators: what is written is encoded, counted and begun as plain transformers does."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerBase,
)

from slimexp.cut.vocabulary import shrunk, tokens_to_keep
from slimexp.data.base import Example
from slimexp.loss.base import IGNORE
from slimexp.model.loading import Pretrained
from slimexp.model.seq2seq import Seq2Seq

SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "init_std": 1.0,
}
WORDS = "abcdefgh"
ROWS = [("a b", "c d e", None), ("f", "a", None), ("b c d e f", "h", None)]


def _mbart(kind: Any, **languages: Any) -> PreTrainedTokenizerBase:
    fairseq, sentencepiece = ("<s>", "<pad>", "</s>", "<unk>"), ("<unk>", "<s>", "</s>")  # MBart50 reorders the latter
    special = [(token, 0.0) for token in (fairseq if kind is MBartTokenizer else sentencepiece)]
    vocabulary = [
        *special,
        ("\u2581", -9.0),
        *((f"\u2581{word}", -2.0) for word in WORDS),
        *((word, -4.0) for word in WORDS),
    ]
    tokenizer: PreTrainedTokenizerBase = kind(vocab=vocabulary, **languages)
    return tokenizer


def _nllb(**languages: Any) -> PreTrainedTokenizerBase:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *WORDS, *(f"\u2581{word}" for word in WORDS)]
    merges = [("\u2581", word) for word in WORDS]
    return NllbTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **languages)


MBART = (
    "mbart",
    lambda **languages: _mbart(MBartTokenizer, **languages),
    {"src_lang": "en_XX", "tgt_lang": "ro_RO"},
    {},
)
MBART50 = (
    "mbart",
    lambda **languages: _mbart(MBart50Tokenizer, **languages),
    {"src_lang": "en_XX", "tgt_lang": "ro_RO"},
    {"decoder_start_token_id": 2},
)
NLLB = ("m2m_100", _nllb, {"src_lang": "eng_Latn", "tgt_lang": "fra_Latn"}, {"decoder_start_token_id": 2})
KINDS = {"mbart": MBART, "mbart50": MBART50, "nllb": NLLB}
Make = Callable[..., Path]


@pytest.fixture
def translator(tmp_path: Path) -> Make:
    """Kind (and languages, and values of the generation config) -> a folder with such a tokenizer and model."""

    def make(kind: str, *, generation: Any = (), **languages: Any) -> Path:
        model_type, tokenizer, settings, config = KINDS[kind]
        made = tokenizer(**(settings | languages))
        torch.manual_seed(0)
        sizes = AutoConfig.for_model(model_type, vocab_size=len(made), **{**SIZES, **config})
        model = AutoModelForSeq2SeqLM.from_config(sizes)
        for name, token in dict(generation).items():
            setattr(model.generation_config, name, made.convert_tokens_to_ids(token))
        made.save_pretrained(tmp_path / kind)
        model.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


def load(folder: Path) -> Seq2Seq:
    family = Pretrained(path=str(folder), max_length=8).load(task="seq2seq", texts=list, labels=())
    assert isinstance(family, Seq2Seq)
    family.model.eval()
    return family


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_batches_and_loss_are_those_of_transformers(translator: Make, kind: str) -> None:
    folder = translator(kind)
    family, plain = load(folder), AutoTokenizer.from_pretrained(folder)
    sources, targets, _ = zip(*ROWS, strict=True)
    expected = plain(list(sources), text_target=list(targets), padding=True, return_tensors="pt")
    for _ in range(2):  # encoding targets leaves the tokenizer ready for sources
        batch = family.encode(ROWS)
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
        labels = batch["labels"]
        assert labels.masked_fill(labels == IGNORE, 1).tolist() == expected["labels"].tolist()
    logits, _ = family.forward(batch)
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    assert loss.item() == pytest.approx(family.model(**batch).loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "generation", "start"),
    [
        ("mbart", {}, {"decoder_start_token_id": "ro_RO"}),
        ("mbart50", {}, {"forced_bos_token_id": "ro_RO"}),
        ("nllb", {}, {"forced_bos_token_id": "fra_Latn"}),
        ("nllb", {"forced_bos_token_id": "fra_Latn"}, {"forced_bos_token_id": "fra_Latn"}),
    ],
)
def test_writes_the_language_of_the_tokenizer_as_plain_generate_does_when_told(
    translator: Make, tmp_path: Path, kind: str, generation: dict[str, str], start: dict[str, str]
) -> None:
    folder = translator(kind, generation=generation)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in start.items()}
    family = load(folder)
    found = family.predict(ROWS, batch_size=1)
    for row, text in zip(ROWS, found, strict=True):
        inputs = tokenizer(row[0], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1, **ids)
        assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == [text]
    family.model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").generation_config
    assert {name: getattr(saved, name) for name in ids} == ids  # and so does whoever loads the artifact


@pytest.mark.parametrize("kind", ["mbart50", "nllb"])
def test_the_language_that_generation_is_forced_to_is_the_tokenizers(translator: Make, kind: str) -> None:
    other = {"mbart50": "de_DE", "nllb": "deu_Latn"}[kind]
    family = load(translator(kind, generation={"forced_bos_token_id": other}, tgt_lang=None))
    assert family.encode(ROWS)["labels"][0, 0] == family.tokenizer.convert_tokens_to_ids(other)


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ({"tgt_lang": "deu_Latn"}, "tokenizer writes 'deu_Latn' .* generation 'fra_Latn' .*: name one language"),
        ({"tgt_lang": "klingon"}, "knows no language 'klingon'"),
    ],
)
def test_contradictions_are_refused(translator: Make, languages: dict[str, str], message: str) -> None:
    folder = translator("nllb", generation={"forced_bos_token_id": "fra_Latn"}, **languages)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_an_unnamed_language_is_warned_of(translator: Make, caplog: pytest.LogCaptureFixture) -> None:
    from slimexp.model.target_language import _warn_unnamed

    _warn_unnamed.cache_clear()
    load(translator("nllb", tgt_lang=None))
    assert "names no language to write" in caplog.text and "eng_Latn" in caplog.text


class _Two:
    """A slow tokenizer of two vocabularies, as Marian's: words as they are read, letters as they are written."""

    is_fast, pad_token_id = False, 0

    def _switch_to_target_mode(self) -> None: ...

    def __call__(
        self, text: Any = None, text_target: Any = None, truncation: bool = False, max_length: Any = None
    ) -> Any:
        pieces = [text.split() for text in text] if text is not None else [list(text) for text in text_target]
        ids = [[len(piece) for piece in words][: max_length if truncation else None] for words in pieces]
        return {"input_ids": ids}


def test_both_sides_are_counted_by_their_own_tokens(translator: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from slimexp.measure.task import _cut
    from slimexp.technique.prune_vocabulary import _ids

    family = load(translator("nllb"))
    monkeypatch.setattr(family, "tokenizer", _Two())
    monkeypatch.setattr(family, "max_length", 4)
    rows = [Example("one two", "abcd"), Example("one two", "abcde"), Example("a b c d e", "a")]
    assert _cut(family, rows) == 2  # read as written the last two words of none would be cut, or all

    corpus = SimpleNamespace(splits={"train": rows})
    assert list(_ids(family, corpus)) == [3, 3, 3, 3, 1, 1, 1, 1, 1] + [1] * 10  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_vocabulary_keeps_both_languages(translator: Make, kind: str) -> None:
    from slimexp.technique.prune_vocabulary import _ids

    corpus = SimpleNamespace(splits={"train": [Example(source, target) for source, target, _ in ROWS]})
    family = load(translator(kind))
    whole = family.tokenizer
    kept = tokens_to_keep(whole, set(_ids(family, corpus)), rows=len(whole))  # type: ignore[arg-type]
    small = shrunk(whole, kept.tolist())
    assert len(small) == len(kept)
    for side in (0, 1):
        for row in ROWS:
            text = {"text_target" if side else "text": row[side]}
            before, after = whole(**text)["input_ids"], small(**text)["input_ids"]
            assert small.convert_ids_to_tokens(after) == whole.convert_ids_to_tokens(before)


def test_marian_reads_and_writes_by_two_vocabularies(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    for side, text in (("source", "a b c d e f g h"), ("target", "aa bb cc dd ee ff gg hh")):
        model = str(tmp_path / side)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 9), model_prefix=model, vocab_size=12, model_type="char", minloglevel=2
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
        # numbered from the end on one side, so that the two differ
        tokens = [pieces.id_to_piece(i) for i in range(len(pieces))][3:][:: 1 if side == "source" else -1]
        vocabulary = {token: i for i, token in enumerate(["</s>", "<unk>", *tokens, "<pad>"])}
        (tmp_path / f"{side}.json").write_text(json.dumps(vocabulary))
    tokenizer = MarianTokenizer(
        str(tmp_path / "source.model"),
        str(tmp_path / "target.model"),
        str(tmp_path / "source.json"),
        target_vocab_file=str(tmp_path / "target.json"),
        separate_vocabs=True,
    )
    pad = tokenizer.pad_token_id
    values = SIZES | {"pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad, "decoder_vocab_size": 16}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("marian", vocab_size=16, **values))
    family = Seq2Seq(model.eval(), tokenizer, max_length=8)
    batch = family.encode([("a b", "aa", None)])
    assert batch["labels"].tolist() == [tokenizer(text_target="aa")["input_ids"]]
    assert batch["input_ids"].tolist() == [tokenizer("a b")["input_ids"]]
    assert batch["labels"].tolist() != [tokenizer("aa")["input_ids"]]  # what it was encoded as
    logits, _ = family.forward(batch)
    loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE)
    assert loss.item() == pytest.approx(family.model(**batch).loss.item(), rel=1e-6)
