"""Hub, on local folders in its formats."""

from pathlib import Path
from typing import Any

import pytest

from slimexp.data.hub import Hub
from slimexp.data.table import Columns, Splits

datasets = pytest.importorskip("datasets")
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def hub(path: object, task: Any, *, text: str = "text", target: str = "target", train: str = "train") -> Hub:
    return Hub(
        path=str(path),
        subset=None,
        task=task,
        columns=Columns(source="source", target=target, text=text, label="label"),
        splits=Splits(
            train=train, validation="validation", test="test", held_out=0.1, max_train=None, max_held_out=None, seed=0
        ),
        passage=None,
    )


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_parquet_folder(task: Any, tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_list(rows)
    table.select(range(40)).to_parquet(tmp_path / "data" / "train.parquet")
    table.select(range(40, 60)).to_parquet(tmp_path / "data" / "test.parquet")
    splits = hub(tmp_path / "data", task).splits
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 36, "validation": 4, "test": 20}


def test_saved_to_disk_with_declared_classes_and_nested_columns(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(
        {"review": [{"body": f"review {i}"} for i in range(30)], "label": [i % 2 for i in range(30)]},
        features=datasets.Features(
            {"review": {"body": datasets.Value("string")}, "label": datasets.ClassLabel(names=["worse", "better"])}
        ),
    )
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved"))
    corpus = hub(tmp_path / "saved", "classification", text="review.body")
    assert corpus.labels == ("worse", "better")  # the order the data declare, not the alphabet's
    assert all(example.label == int(example.source.split()[1]) % 2 for example in corpus.splits["train"])


def test_single_table_is_train(tmp_path: Path, rows: Rows) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert len(hub(tmp_path / "saved", "seq2seq").splits["train"]) == 48


def test_splits_that_are_not_read_are_said(tmp_path: Path, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    table = datasets.Dataset.from_list(rows)
    tables = {"train": table.select(range(40)), "test": table.select(range(40, 60)), "dev": table}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    _ = hub(tmp_path / "saved", "seq2seq").splits
    assert [line for line in caplog.messages if "not read" in line] == [
        f"splits of dataset '{tmp_path / 'saved'}' that are not read: dev"
    ]


def test_labels_of_a_dataset_are_refused_by_row(tmp_path: Path) -> None:
    table = {"text": ["a", "b"], "label": ["x", None]}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"split 'train' of dataset '.*', row 2: column 'label' is empty"):
        _ = hub(tmp_path / "saved", "classification").splits


def test_missing_names(tmp_path: Path, rows: Rows) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="has no split 'training'; it has: train"):
        _ = hub(tmp_path / "saved", "seq2seq", train="training").splits
    with pytest.raises(
        ValueError, match=r"'targets' is missing .*there are: source, target, text, label; did you mean 'target'"
    ):
        _ = hub(tmp_path / "saved", "seq2seq", target="targets").splits


@pytest.mark.parametrize(
    ("path", "why"), [("no/such-dataset", "HF_HUB_OFFLINE is set.*HF_HOME"), ("./no-such-folder", "no such folder")]
)
def test_unreachable(path: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"cannot load dataset '{path}': .*{why}.*data=files"):
        _ = hub(path, "seq2seq").splits


def test_a_script_in_a_folder_is_not_run(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    (folder / "data.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot load dataset") as raised:
        hub(folder, "causal_lm").splits  # noqa: B018 (reading it is what is tried)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "canary").exists()
