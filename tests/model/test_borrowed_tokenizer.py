"""A student of random weights reads the tokens of another model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slimexp.model.borrowed_tokenizer import BorrowedTokenizer
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bytes

LLAMA = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}


def test_it_is_that_of_the_model(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("causal_lm")
    own = BorrowedTokenizer(path=str(folder)).build(())
    assert own.get_vocab() == Bytes().build(()).get_vocab()
    assert own("two words")["input_ids"] == Bytes().build(())("two words")["input_ids"]


def test_it_counts_in_the_fingerprint(tiny_folder: Callable[..., Path]) -> None:
    """It may change under the same path."""
    folder = tiny_folder("causal_lm")
    source = Scratch(config=LLAMA, tokenizer=BorrowedTokenizer(path=str(folder)), max_length=32)
    before = source.fingerprint()
    assert before and before == source.fingerprint()
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"!"', '"!!"', 1))
    assert source.fingerprint() != before
    assert Scratch(config=LLAMA, tokenizer=Bytes(), max_length=32).fingerprint() == ""


def test_the_model_has_a_row_for_every_token() -> None:
    source = Scratch(config=LLAMA, tokenizer=BorrowedTokenizer(path="zoo:llama_python_source"), max_length=32)
    family = source.load(task="causal_lm", texts=tuple, labels=())
    assert family.model.config.vocab_size == len(family.tokenizer) == 4096


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no model 'zoo:nothing': the zoo holds"):
        BorrowedTokenizer(path="zoo:nothing").build(())
