import pytest

from slimexp.data.passage import cut

pytestmark = pytest.mark.fast


def test_passages_are_whole_lines_and_lose_nothing() -> None:
    text = "".join(f"line {number}\n" * (number % 4) for number in range(40))
    passages = list(cut(text, 30))
    assert "".join(passages) == text
    assert all(len(passage) <= 30 and passage.endswith("\n") for passage in passages)


def test_long_lines_are_broken_between_words() -> None:
    text = "word " * 30 + "x" * 50
    passages = list(cut(text, 20))
    assert "".join(passages) == text
    assert max(map(len, passages)) <= 20
    assert passages[0] == "word " * 4


def test_blank_text_gives_no_passage() -> None:
    assert list(cut("\n \n\n", 2)) == []
