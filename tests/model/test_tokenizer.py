from pathlib import Path

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from slimexp.model.tokenizer import Bpe, Bytes

TEXTS = ["", "a", "two words", "  spaces  ", "äöü € 漢字 🙂", "tab\tline\nend", "\x00\x7f", "don't, won't."]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_ids_minus_three(text: str) -> None:
    assert Bytes().build([])(text)["input_ids"] == [byte + 3 for byte in text.encode()] + [1]


def test_bytes_are_the_ids_of_byt5() -> None:
    tokenizer, expected = Bytes().build([]), ByT5Tokenizer()
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]
    assert len(tokenizer) == 259
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_bytes_read_no_text() -> None:
    def never() -> object:
        raise AssertionError("the corpus was read")
        yield

    Bytes().build(never())  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", [Bytes(), Bpe(vocab_size=300, characters=10_000)], ids=["bytes", "bpe"])
def test_text_survives_and_a_reload_changes_nothing(recipe: Bytes | Bpe, tmp_path: Path) -> None:
    tokenizer = recipe.build(["two words and two words more"] * 20)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert reloaded(text)["input_ids"] == ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert reloaded.decode(ids, skip_special_tokens=True) == text
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map


def test_bpe_learns_what_is_frequent_and_starts_every_text() -> None:
    tokenizer = Bpe(vocab_size=300, characters=10_000).build(["lorem ipsum"] * 50)
    ids = tokenizer("lorem ipsum")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and len(ids) == 3
    assert len(tokenizer) <= 300


def test_bpe_reads_no_more_than_it_may() -> None:
    read = []

    def texts() -> object:
        for i in range(100):
            read.append(i)
            yield "x" * 10

    Bpe(vocab_size=260, characters=25).build(texts())  # type: ignore[arg-type]
    assert len(read) <= 4


@pytest.mark.fast
def test_bpe_needs_room_for_every_byte() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be >= 260 .*, got 259"):
        Bpe(vocab_size=259, characters=10)
