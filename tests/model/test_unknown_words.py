"""A tokenizer without its files knows no word, and a model would train on noise; others are not in the way."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from slimexp.config.composition import compose
from slimexp.data.base import Corpus
from slimexp.model.loading import Pretrained
from slimexp.model.place import ZOO
from slimexp.model.special_tokens import align
from slimexp.model.tokenizer import Bpe, Bytes
from slimexp.model.unknown_words import check_words, unwritten
from slimexp.pipeline import preflight, reference

WORDS = ["The", "cat,", "sat", "on", "a", "déjà-vu", "mat", "12", "times"]


def of_words(*words: str, unknown: str | None = "[UNK]") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    special = [unknown] if unknown else []
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5", "gpt2", "qwen2", "albert", "deberta-v2", "gemma"])
def test_a_folder_without_tokenizer_files_knows_no_word(kind: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    assert unwritten(AutoTokenizer.from_pretrained(tmp_path), WORDS) == WORDS


def test_tokenizers_of_bytes_know_all_words() -> None:
    for tokenizer in (Bytes().build([]), Bpe(vocab_size=260, characters=9).build(["ab"])):
        assert unwritten(tokenizer, WORDS) == []


@pytest.mark.parametrize(("known", "refused"), [(4, True), (5, False)])
def test_most_words_must_be_known(known: int, refused: bool, corpus: Callable[[str], Corpus]) -> None:
    """Of the table's words in the rows of train: those that are known are the ones that come first."""
    text = corpus("classification")
    words = [word for row in text.splits["train"] for word in row.source.split()]
    distinct = sorted(set(words), key=words.count, reverse=True)[:known]
    share = sum(word in distinct for word in words) / len(words)
    assert (share < 0.5) is refused
    if not refused:
        check_words(of_words(*distinct), text, "the model")
        return
    with pytest.raises(
        ValueError, match=r"^the model 'x': its tokenizer must know most words of the corpus, and \d+ of"
    ):
        check_words(of_words(*distinct), text, "the model 'x'")


@pytest.fixture
def unread(overrides: Callable[..., list[str]]) -> tuple[list[str], Path]:
    """A command line, and the folder of its model, whose tokenizer is of another language."""
    run = overrides("prune", task="classification")
    folder = Path(run[1].removeprefix("model.path="))
    preflight.training(compose(run))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    other = of_words("<pad>", "</s>", *map(str, range(900, 1155)), unknown="<unk>")
    other.pad_token, other.eos_token = "<pad>", "</s>"
    other.save_pretrained(folder)
    return run, folder


def test_a_run_on_it_is_refused_before_it_trains(unread: tuple[list[str], Path]) -> None:
    run, folder = unread
    with pytest.raises(ValueError, match=rf"^the model '{folder}': its tokenizer must know most words of the corpus"):
        preflight.training(compose(run))


def test_a_teacher_that_reads_noise(unread: tuple[list[str], Path], corpus: Callable[[str], Corpus]) -> None:
    teacher: Any = SimpleNamespace(teacher=Pretrained(path=str(unread[1]), max_length=16))
    student = Pretrained(path="zoo:bert_docstring_topic", max_length=16)
    reference.check_tokenizers(student, None, corpus("classification"))
    with pytest.raises(ValueError, match=rf"^pipeline\.distill\.teacher '{unread[1]}': its tokenizer must know"):
        reference.check_tokenizers(student, None, corpus("classification"), {"distill": teacher})


@pytest.mark.parametrize(
    ("embedded", "tokenizer", "refused"),
    [
        (30_522, of_words("a", "b"), True),  # as transformers makes of no files
        (64, of_words("a", "b"), False),  # a small alphabet, padded
        (50_257, Bytes().build([]), False),
        (500, of_words(*map(str, range(120))), False),
    ],
)
def test_an_embedding_may_be_padded_but_not_empty(
    embedded: int, tokenizer: PreTrainedTokenizerFast, refused: bool
) -> None:
    tokenizer.pad_token = tokenizer.pad_token or "a"
    config: Any = BertConfig(vocab_size=embedded, hidden_size=4, num_hidden_layers=0, num_attention_heads=1)
    model = BertModel(config)
    if not refused:
        align(model, tokenizer)
        return
    with pytest.raises(ValueError, match=rf"must have tokens for the model's {embedded} embeddings, got 1 beside"):
        align(model, tokenizer)


@pytest.mark.parametrize("folder", sorted(ZOO.iterdir()), ids=lambda folder: folder.name)
def test_the_zoo_is_not_refused(folder: Path) -> None:
    assert unwritten(AutoTokenizer.from_pretrained(folder), WORDS) == []
