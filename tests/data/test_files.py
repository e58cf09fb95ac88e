import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.data.base import Example
from slimexp.data.files import Files

Rows = list[dict[str, Any]]
Make = Callable[..., Files]


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_formats_agree(
    files: Make, suffix: str, tmp_path: Path, rows: Rows, write_jsonl: Any, write_parquet: Any
) -> None:
    write = {".jsonl": write_jsonl, ".parquet": write_parquet}.get(suffix, write_csv)
    rows[3]["source"] = 'a "quoted", two-\nline field'
    write(tmp_path / f"rows{suffix}", rows)
    splits = files(tmp_path / f"rows{suffix}").splits
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 48, "validation": 6, "test": 6}
    found = {(example.source, example.target) for examples in splits.values() for example in examples}
    assert found == {(row["source"], row["target"]) for row in rows}


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train-0.jsonl", "validation-0.jsonl", "test-0.jsonl"),
        ("train/a.jsonl", "validation/a.jsonl", "test/a.jsonl"),
        ("train.jsonl", "dev.jsonl", "test.jsonl"),
        ("training.jsonl", "valid.jsonl", "heldout.jsonl"),
        ("imdb_train.jsonl", "imdb_val.jsonl", "imdb-test.jsonl"),
        ("Train1.jsonl", "DEV1.jsonl", "TEST1.jsonl"),
        ("latest-devices.train.jsonl", "validate/development.jsonl", "test.2019.jsonl"),
    ],
)
def test_folder_with_splits(files: Make, names: tuple[str, ...], tmp_path: Path, rows: Rows, write_jsonl: Any) -> None:
    for name, part in zip(names, (rows[:40], rows[40:50], rows[50:]), strict=True):
        write_jsonl(tmp_path / name, part)
    splits = files(tmp_path).splits
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 40, "validation": 10, "test": 10}
    assert splits["test"][0] == Example("teh row nubmer 50", "the row number 50")


def test_what_is_not_read_is_said(
    files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "train.jsonl",
        "test.jsonl",
        "more.jsonl",
        "eval.jsonl",
        "README.md",
        ".ipynb_checkpoints/train.jsonl",
    ):
        write_jsonl(tmp_path / name, rows[:40] if name == "train.jsonl" else rows[40:])
    (tmp_path / "train.csv").mkdir()  # no file
    assert sum(map(len, files(tmp_path).splits.values())) == 60
    messages = [line for line in caplog.messages if "not read" in line]
    assert messages == [f"not read in {tmp_path}: README.md, eval.jsonl, more.jsonl"]


def test_a_split_that_is_not_asked_for_is_not_read(
    files: Make, tmp_path: Path, rows: Rows, write_jsonl: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows[:50])
    write_jsonl(tmp_path / "test.jsonl", rows[50:])
    assert sum(map(len, files(tmp_path, test=None).splits.values())) == 50
    assert "test.jsonl" in caplog.text


@pytest.mark.parametrize("name", ["train_test.jsonl", "train/dev.jsonl", "valid.test.jsonl"])
def test_a_file_of_two_splits_is_refused(files: Make, name: str, tmp_path: Path, rows: Rows, write_jsonl: Any) -> None:
    write_jsonl(tmp_path / name, rows)
    with pytest.raises(ValueError, match=r"is named after the splits .* and "):
        _ = files(tmp_path).splits


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"source,target\na,b\nc\n", "a.csv, line 3: 1 fields, the header has 2"),
        ("a.csv", b'source,target\n"a"x,b\n', "a.csv, line 2: "),
        ("a.csv", b"source,target\n\xff\xfe,b\n", "a.csv, line 2: not UTF-8 text"),
        (
            "a.csv",
            b"sourse,target\na,b\n",
            "'source' is missing in split 'train'; there are: sourse, target; did you mean",
        ),
        ("a.csv", b"source,target\n", "a.csv: the file holds no rows"),
        ("a.csv", b"", "a.csv: the file holds no rows"),
        ("a.jsonl", b'{"source": "a", "target": "b"}\n\n{"source": \n', "a.jsonl, line 3: not JSON: .* at column"),
        ("a.jsonl", b'["a"]\n', "a.jsonl, line 1: each line must be one JSON object, got list"),
        ("a.jsonl", b'{"source": "a", "target": null}\n', "a.jsonl, line 1: column 'target' must hold text, got None"),
        ("a.parquet", b"PAR0", "a.parquet: not a readable parquet file"),
        ("a.txt", b"text", "'source' is missing in split 'train'; there are: text"),
        ("a.docx", b"text", "cannot read '.docx' files, only .csv, .tsv, .jsonl, .parquet, .txt"),
    ],
)
def test_bad_file(files: Make, name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _ = files(tmp_path / name).splits


def test_bad_path(files: Make, tmp_path: Path, rows: Rows, write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere"):
        _ = files(tmp_path / "nowhere").splits
    with pytest.raises(ValueError, match=r"has no file that ends with \.csv"):
        _ = files(tmp_path).splits
    write_jsonl(tmp_path / "test.jsonl", rows)
    with pytest.raises(ValueError, match=r"has files of split 'test' and none of train: name one 'train.*'"):
        _ = files(tmp_path).splits


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file(files: Make, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv" if kind == "fifo" else Path("/dev/null")
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        _ = files(path).splits
    with pytest.raises(ValueError, match="has no file that ends with"):
        _ = files(tmp_path).splits


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_two_columns_of_one_name_are_refused(files: Make, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"twins.{ending}"
    if ending == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.table([["a"], ["b"], ["c"]], names=["source", "target", "source"])
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        sign = "," if ending == "csv" else "\t"
        path.write_text("\n".join(sign.join(row) for row in (("source", "target", "source"), ("a", "b", "c"))) + "\n")
    with pytest.raises(ValueError, match=r"twins\.\w+(, line 1)?: two columns are called 'source': rename one$"):
        _ = files(path).splits
