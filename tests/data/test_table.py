"""What corpora of a user's own table share: columns, passages, held-out splits and labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.data.base import HELD_OUT
from slimexp.data.files import Files

Rows = list[dict[str, Any]]
Make = Callable[..., Files]


def test_txt_is_cut_into_passages(files: Make, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n" * 30)
    splits = files(tmp_path, "causal_lm", passage=64).splits
    assert all(len(example.source) <= 64 for examples in splits.values() for example in examples)
    documents = {split: {example.source.split("\n")[0] for example in rows} for split, rows in splits.items()}
    assert not documents["train"] & (documents["validation"] | documents["test"])  # whole documents are held out
    assert len(files(tmp_path, "causal_lm").splits["train"]) == 16


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_text_is_split_by_its_passages(files: Make, end: str, tmp_path: Path) -> None:
    text = "".join(f"line {number} of a long book{end}" for number in range(400))
    (tmp_path / "book.txt").write_bytes(text.encode())
    splits = files(tmp_path / "book.txt", "causal_lm", passage=256).splits
    pieces = [example.source for examples in splits.values() for example in examples]
    assert sorted("".join(pieces).splitlines()) == sorted(text.splitlines())  # all of it, once
    share = len(splits["test"]) / len(pieces)
    assert len(splits["test"]) == len(splits["validation"]) and share == pytest.approx(0.1, abs=0.02)
    assert splits == files(tmp_path / "book.txt", "causal_lm", passage=256).splits
    with pytest.raises(ValueError, match=r"too few training texts .* set data.passage"):
        _ = files(tmp_path / "book.txt", "causal_lm", passage=None).splits


def test_one_training_text_beside_a_test_text(files: Make, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {number}\n" for number in range(400)))
    splits = files(tmp_path, "causal_lm", passage=256).splits
    assert all("train" in example.source for name in ("train", "validation") for example in splits[name])
    assert len(splits["train"]) > len(splits["validation"]) > 0
    assert all("test" in example.source for example in splits["test"])


def test_missing_split_is_taken_out_of_train(files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows[:50])
    write_jsonl(tmp_path / "dev.jsonl", rows[50:])
    splits = files(tmp_path, validation="dev").splits
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 45, "validation": 10, "test": 5}


def test_split_ignores_the_order_of_rows_and_keeps_equal_ones_together(
    files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any
) -> None:
    straight = files(write_jsonl(tmp_path / "a.jsonl", rows)).splits
    backwards = files(write_jsonl(tmp_path / "b.jsonl", rows[::-1] + rows)).splits
    for split in HELD_OUT:
        assert {example.source for example in straight[split]} == {example.source for example in backwards[split]}
    assert not {example.source for example in backwards["train"]} & {example.source for example in backwards["test"]}


def test_training_rows_that_are_held_out_are_dropped_and_said(
    files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name, part in (("train", rows), ("validation", rows[5:25]), ("test", rows[:10])):
        write_jsonl(tmp_path / f"{name}.jsonl", part)
    sizes = {split: len(examples) for split, examples in files(tmp_path).splits.items()}
    assert sizes == {"train": 35, "validation": 15, "test": 10}
    assert [line for line in caplog.messages if "left out" in line] == [
        "5 rows of split 'validation' are left out: a held-out split has the same text",
        "25 rows of split 'train' are left out: a held-out split has the same text",
    ]


def test_rows_taken_out_of_train_are_not_said_to_be_left_out(
    files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _ = files(write_jsonl(tmp_path / "a.jsonl", rows)).splits
    assert "left out" not in caplog.text


def test_limits(files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    sizes = {split: len(kept) for split, kept in files(path, max_train=7, max_held_out=2).splits.items()}
    assert sizes == {"train": 7, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("values", "labels"),
    [(["b", "a"], ("a", "b")), ([10, 9], ("9", "10")), ([True, False], ("False", "True"))],
)
def test_labels_are_sorted(
    files: Make, values: list[Any], labels: tuple[str, ...], tmp_path: Path, rows: Rows, write_jsonl: Any
) -> None:
    for number, row in enumerate(rows):
        row["label"] = values[number % 2]
    corpus = files(write_jsonl(tmp_path / "rows.jsonl", rows), "classification")
    assert corpus.labels == labels
    for example in corpus.splits["train"]:
        assert labels[example.label or 0] == str(values[int(example.source.split()[1]) % 2])


@pytest.mark.parametrize(
    "values", [(1, "1", 1.0, " 1"), ("yes", "yes ", "\u00a0yes", "yes\t"), ("caf\u00e9", "cafe\u0301")]
)
def test_spellings_of_a_class_are_one(
    files: Make, values: tuple[Any, ...], tmp_path: Path, rows: Rows, write_jsonl: Any
) -> None:
    for number, row in enumerate(rows):
        row["label"] = "other" if number % 2 else values[number // 2 % len(values)]
    corpus = files(write_jsonl(tmp_path / "rows.jsonl", rows), "classification")
    assert len(corpus.labels) == 2
    for example in corpus.splits["train"]:
        assert (corpus.labels[example.label or 0] == "other") == (int(example.source.split()[1]) % 2 == 1)


def test_a_class_that_no_training_row_is_of_is_said(
    files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any, caplog: pytest.LogCaptureFixture
) -> None:
    taken = files(write_jsonl(tmp_path / "rows.jsonl", rows), "classification").splits["test"][0].source
    rows[int(taken.split()[1])]["label"] = "rare"
    _ = files(write_jsonl(tmp_path / "rows.jsonl", rows), "classification").splits
    assert "no training row is of 1 of 3 classes: rare" in caplog.text


def test_blank_rows_are_dropped(files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0] | {"source": "  "}, rows[1] | {"target": ""}])
    assert sum(map(len, files(path).splits.values())) == 60


def test_text_that_is_all_blank_is_refused_by_its_file(files: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 1: no row of split 'train' holds text: fill the data, or name"):
        _ = files(tmp_path / "a.txt", "causal_lm").splits


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "half \\ud83d", "label": "a"}', r"line 3: column 'text' holds half a character .*character 6"),
        ('{"text": null, "label": "a"}', "line 3: column 'text' must hold text, got None"),
        ('{"text": {"en": "a"}, "label": "a"}', "line 3: column 'text' must hold text, got {"),
        ('{"text": ["a"], "label": "a"}', "line 3: column 'text' must hold text, got \\["),
        ('{"label": "a"}', "line 3: column 'text' is missing"),
        ('{"text": "c", "label": null}', "line 3: column 'label' is empty"),
        ('{"text": "c", "label": NaN}', "line 3: column 'label' is empty"),
        ('{"text": "c", "label": " "}', "line 3: column 'label' is empty"),
        ('{"text": "c", "label": 0.5}', "line 3: column 'label' must hold text or integers, got 0.5"),
        ('{"text": "c", "label": ["a"]}', "line 3: column 'label' must hold text or integers"),
        ('{"text": "c", "label": "A"}', "line 3: column 'label' holds 'A', and 'a' at .*, line 1"),
    ],
)
def test_bad_cells_are_refused_by_file_line_and_column(files: Make, line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "a"}\n{"text": "b", "label": "b"}\n' + line)
    with pytest.raises(ValueError, match=f"a.jsonl, {message}"):
        _ = files(tmp_path / "a.jsonl", "classification").splits


def test_bad_cells_of_parquet(files: Make, tmp_path: Path, write_parquet: Any) -> None:
    write_parquet(tmp_path / "a.parquet", [{"text": "a", "label": 1}, {"text": "b", "label": None}])
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: column 'label' is empty"):
        _ = files(tmp_path / "a.parquet", "classification").splits
    write_parquet(tmp_path / "a.parquet", [{"text": b"a", "label": 1}])
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: column 'text' must hold text, got b'a'"):
        _ = files(tmp_path / "a.parquet", "classification").splits


def test_bad_labels(files: Make, tmp_path: Path, rows: Rows, write_jsonl: Callable[..., Path]) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"text": "unseen", "label": "c"}])
    with pytest.raises(
        ValueError,
        match=r"test\.jsonl, line 1: label 'c' of split 'test' is none of the 2 classes .*\(a, b\).*splits.test=null",
    ):
        _ = files(tmp_path, "classification").splits
    (tmp_path / "test.jsonl").unlink()
    write_jsonl(tmp_path / "train.jsonl", [row | {"label": "a"} for row in rows])
    with pytest.raises(ValueError, match=r"column 'label' holds one class alone \('a'\)"):
        _ = files(tmp_path, "classification").splits
    write_jsonl(tmp_path / "train.jsonl", [row | {"label": row["text"]} for row in rows])
    with pytest.raises(ValueError, match=r"column 'label' holds 60 classes in 60 training rows"):
        _ = files(tmp_path, "classification").splits


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "translation"}, "task must be one of seq2seq, causal_lm, classification, got 'translation'"),
        ({"passage": 1}, "passage must be >= 2 characters"),
        ({"held_out": 0.5}, r"splits.held_out must be in \(0, 0.5\), got 0.5"),
        ({"max_train": 0}, "splits.max_train must be >= 1"),
    ],
)
def test_refused(files: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files(Path("unread"), **arguments)
