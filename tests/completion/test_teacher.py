"""Texts of a teacher: of training rows alone, written once, the same whoever asks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slimexp.completion import store
from slimexp.completion.filters import Filters
from slimexp.completion.teacher import TeacherWritten
from slimexp.data.base import Corpus, Example
from slimexp.model.base import Family

Make = Callable[..., Any]
KEEP = Filters(shortest=1, finished=False, compression=None, worst_cer=None, similarity=None)


def completion(**values: Any) -> TeacherWritten:
    settings = {"share": 1.0, "beams": 1, "temperature": 0.0, "longest": 6, "prompt": 4, "rows": None, "epochs": 1,
                "batch_size": 8, "seed": 0, "filters": KEEP}  # fmt: skip
    return TeacherWritten(**settings | values)


class Teacher:
    """Lends a model, and counts how often."""

    def __init__(self, family: Family) -> None:
        self.family, self.calls = family, 0

    @contextmanager
    def __call__(self) -> Iterator[Family]:
        self.calls += 1
        yield self.family


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_what_the_teacher_predicts(tiny: Make, corpus: Make, tmp_path: Path, beams: int) -> None:
    teacher, data = Teacher(tiny("seq2seq")), corpus("seq2seq")
    texts = store.read(completion(beams=beams).write(data, teacher, tmp_path, "it"))
    rows = [(row.source, None, None) for row in data.splits["train"]]
    assert [text.source for text in texts] == [row[0] for row in rows]
    teacher.family.max_length = 6
    sources = teacher.family.token_ids([row[0] for row in rows], truncate=False)
    model = teacher.family.model
    model.generation_config.num_beams = beams
    for text, ids in list(zip(texts, sources, strict=True))[:4]:
        batch, mask = teacher.family.pad([ids])
        expected = model.generate(input_ids=batch, attention_mask=mask, max_new_tokens=6, do_sample=False)
        assert text.text == teacher.family.tokenizer.decode(expected[0], skip_special_tokens=True)


def test_a_causal_teacher_goes_on_after_the_beginning_of_training_texts(
    tiny: Make, corpus: Make, tmp_path: Path
) -> None:
    teacher, data = Teacher(tiny("causal_lm")), corpus("causal_lm")
    own = completion(longest=9, prompt=5)
    path = own.write(data, teacher, tmp_path, "it")
    beginnings = {row.source[:5] for row in data.splits["train"]}
    texts = store.read(path)
    assert texts and all(text.source in beginnings for text in texts)
    rows = own.corpus(data, path).splits["train"]
    assert [row.source for row in rows] == [text.source + text.text for text in texts]


def test_texts_that_are_no_longer_than_the_prompt_are_left_out(tiny: Make, corpus: Make, tmp_path: Path) -> None:
    data = corpus("causal_lm")
    lengths = [len(row.source.encode()) + 1 for row in data.splits["train"]]  # bytes and the end
    texts = store.read(completion(prompt=10).write(data, Teacher(tiny("causal_lm")), tmp_path, "it"))
    assert len(texts) == sum(length > 10 for length in lengths) < len(lengths)


def test_it_is_written_once_for_all_that_ask_for_the_same(tiny: Make, corpus: Make, tmp_path: Path) -> None:
    teacher, data = Teacher(tiny("seq2seq")), corpus("seq2seq")
    path = completion().write(data, teacher, tmp_path, "it")
    same = [{"share": 0.5}, {"batch_size": 3}, {"filters": Filters(**vars(KEEP) | {"shortest": 2})}]
    assert {completion(**values).write(data, teacher, tmp_path, "it") for values in same} == {path}
    assert teacher.calls == 1
    other = [{"longest": 5}, {"temperature": 0.5}, {"rows": 3}, {"beams": 2}]
    paths = {completion(**values).write(data, teacher, tmp_path, "it") for values in other}
    paths |= {completion().write(data, teacher, tmp_path, "another"), path}
    assert len(paths) == 6 and teacher.calls == 6


def test_draws_of_other_batches_are_other_texts(tiny: Make, corpus: Make, tmp_path: Path) -> None:
    """Of each batch there is one draw, so that its size tells what is written."""
    teacher, data = Teacher(tiny("seq2seq")), corpus("seq2seq")
    sizes = (8, 3, 8)
    paths = [completion(temperature=1.0, batch_size=n).write(data, teacher, tmp_path, "it") for n in sizes]
    assert paths[0] == paths[2] != paths[1] and teacher.calls == 2
    first, other = ([text.text for text in store.read(path)] for path in paths[:2])
    assert first != other


def test_a_draw_does_not_depend_on_what_was_drawn_before(tiny: Make, corpus: Make, tmp_path: Path) -> None:
    teacher, data = Teacher(tiny("seq2seq")), corpus("seq2seq")
    first, second = (completion(temperature=1.0, epochs=2).write(data, teacher, tmp_path / n, "it") for n in "ab")
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    texts = store.read(first)
    count = len(data.splits["train"])
    assert len(texts) == 2 * count and [text.epoch for text in texts] == [0] * count + [1] * count
    assert texts[0].source == texts[count].source and texts[0].text != texts[count].text


def test_nothing_of_held_out_splits_is_read(tiny: Make, corpus: Make, tmp_path: Path) -> None:
    data: Corpus = corpus("seq2seq")
    before = dict(data.splits)
    data.splits = {**before, "validation": [Example("held", "out")], "test": [Example("held", "out")]}
    own = completion()
    path = own.write(data, Teacher(tiny("seq2seq")), tmp_path, "it")
    data.splits = before
    assert own.write(data, Teacher(tiny("seq2seq")), tmp_path, "it") == path
    sources = {text.source for text in store.read(path)}
    assert sources == {row.source for row in before["train"]}


def test_the_trained_rows_are_those_that_are_fit(
    tiny: Make, corpus: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, teacher = corpus("seq2seq"), Teacher(tiny("seq2seq"))
    path = completion().write(data, teacher, tmp_path, "it")
    texts = store.read(path)
    rows = completion().corpus(data, path)
    assert [row.target for row in rows.splits["train"]] == [text.text for text in texts if text.text.strip()]
    assert "texts of the teacher are learned from" in capsys.readouterr().out
    none = completion(filters=Filters(**vars(KEEP) | {"worst_cer": 0.0}))
    with pytest.raises(ValueError, match=r"no text that the teacher wrote is fit .*unlike the gold target"):
        none.corpus(data, path)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0\.0"),
        ({"rows": 0}, "rows must be >= 1, got 0"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"beams": 2, "temperature": 0.5}, "beams search for the likeliest text"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        completion(**values)


def test_what_nobody_can_write_is_refused(corpus: Make) -> None:
    with pytest.raises(ValueError, match="a classifier of the task classification writes none"):
        completion().check(corpus("classification"), 64)
    with pytest.raises(ValueError, match=r"epochs=2 asks for as many texts of a row, but the text .* is the same"):
        completion(epochs=2).check(corpus("seq2seq"), 64)
    completion(epochs=2, temperature=1.0).check(corpus("seq2seq"), 64)
    graded = completion(filters=Filters(**vars(KEEP) | {"worst_cer": 0.2}))
    with pytest.raises(ValueError, match=r"worst_cer=0\.2 is an error rate .* causal_lm has none: set it to null"):
        graded.check(corpus("causal_lm"), 64)
    graded.check(corpus("seq2seq"), 64)


def test_a_prompt_must_leave_room(corpus: Make) -> None:
    with pytest.raises(ValueError, match=r"prompt must leave room for a text in max_length=16, got 15"):
        completion(prompt=15).check(corpus("causal_lm"), 16)
    completion(prompt=14).check(corpus("causal_lm"), 16)
    completion(prompt=99).check(corpus("seq2seq"), 16)
