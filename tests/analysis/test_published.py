"""Points of others: read, matched with their corpus, and refused in one line that says where."""

import os
from pathlib import Path

import optuna
import pyarrow  # type: ignore[import-untyped]
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pyarrow import parquet

from slimexp.analysis import published
from slimexp.analysis.published import read

pytestmark = pytest.mark.fast


def written(folder: Path, text: str, name: str = "points.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("points.csv", "\ufefflabel,disk_mb,cer,cer_stderr\nT5 small, 120 ,0.01,0.002\n\nBARE,,0.02,\n"),
        (
            "points.jsonl",
            '{"label": "T5 small", "disk_mb": 120, "cer": 0.01, "cer_stderr": 0.002}\n\n'
            '{"label": "BARE", "cer": 0.02, "disk_mb": null}\n',
        ),
    ],
)
def test_points_with_what_was_published_of_them(tmp_path: Path, name: str, text: str) -> None:
    first, bare = read(written(tmp_path, text, name), ["spelling"])["spelling"]
    assert (first.label, first.value("disk_mb"), first.value("cer"), first.error("cer")) == (
        "T5 small",
        120,
        0.01,
        0.002,
    )
    assert not first.dense and first.seeds == first.artifacts == ()
    assert bare.label == "BARE" and set(bare.figures) == {"cer"}


def test_a_point_belongs_to_one_corpus(tmp_path: Path) -> None:
    path = written(tmp_path, "label,corpus,cer\na,spelling,0.1\nb,files (rate=1),0.2\n")
    found = read(path, ["spelling", "files (rate=1)", "hub"])
    assert {title: [point.label for point in points] for title, points in found.items()} == {
        "spelling": ["a"],
        "files (rate=1)": ["b"],
        "hub": [],
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("points.txt", "label,cer\n", r"must end in .csv, .*.db, .*or .log, got .*points.txt"),
        ("points.csv", "", r"must name the columns, 'label' among them, each once; got \[\]"),
        ("points.csv", "name,cer\na,1\n", "'label' among them"),
        ("points.csv", "label,cer,cer\na,1,2\n", "each once"),
        ("points.csv", "label,cer\na,1,2\n", "line 2 of .* has 3 cells, and the header 2"),
        (
            "points.csv",
            "label,corpus,cer\na,other,1\nb,other,good\n",
            "cer in row 2 of .* must be a finite number, got 'good'",
        ),
        ("points.csv", "label,cer\na,nan\n", "must be a finite number, got 'nan'"),
        ("points.csv", "label,cer\n,1\n", "row 1 of .* needs a 'label'"),
        ("points.csv", "label,cer\na,\n", r"row 1 of .* \(a\) holds no metric"),
        ("points.csv", "label,corpus,cer\na,speling,1\n", "is of corpus 'speling': .* one of 'spelling', 'other'"),
        ("points.csv", "label,cer\na,1\n", "row 1 of .* names no corpus: 'corpus' must be one of"),
        ("points.jsonl", "{\n", "line 1 of .* is no JSON"),
        ("points.jsonl", "[1]\n", "line 1 of .* must be an object, got list"),
        ("points.csv", "label,cer\na,1e200\n", "must be a finite number, got '1e200'"),
        ("points.csv", "label,cer\n" + "x" * 200_000 + ",1\n", "line 2 of .* is no CSV: field larger"),
        ("points.csv", "label,\x1b[2J\na,x\n", r"^\\x1b\[2J in row 1 of .* must be a finite number, got 'x'"),
        ("points.jsonl", '{"label": "a", "cer": true}', "must be a finite number, got True"),
        ("points.jsonl", '{"label": "a", "cer": 1' + "0" * 400 + "}", "must be a finite number, got 10000"),
        ("points.jsonl", '{"label": "a", "cer": 1' + "0" * 5_000 + "}", "line 1 of .* is no JSON"),
        ("points.jsonl", '{"label": "a", "cer": NaN}', "must be a finite number, got nan"),
        ("points.jsonl", "[" * 100_000, "line 1 of .* is no JSON"),
        ("points.jsonl", '{"label": "a", "corpus": ["spelling"], "cer": 1}', r"is of corpus \['spelling'\]"),
        ("points.jsonl", '{"label": "a", "corpus": "other", "cer": [1]}', r"must be a finite number, got \[1\]"),
    ],
)
def test_a_bad_file_is_one_error_that_names_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, text, name), ["spelling", "other"])


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent.csv of published points"):
        read(tmp_path / "absent.csv", ["spelling"])
    (tmp_path / "points.csv").write_bytes(b"label,cer\n\xff,1\n")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        read(tmp_path / "points.csv", ["spelling"])


def test_what_is_no_file_of_bounded_size_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name in ("pipe.csv", "folder.csv", "zero.jsonl"):
        with pytest.raises(OSError, match="not a regular file"):
            read(tmp_path / name, ["spelling"])
    monkeypatch.setattr(published, "LONGEST", 5)
    with pytest.raises(ValueError, match="is too large"):
        read(written(tmp_path, "label,cer\na,1\n"), ["spelling"])


def test_a_label_is_one_line_that_no_terminal_obeys(tmp_path: Path) -> None:
    path = written(tmp_path, '{"label": "a\\nb\\u001b\\ud800", "cer": 1}', "points.jsonl")
    (point,) = read(path, ["spelling"])["spelling"]
    assert point.label == r"a\nb\x1b\ud800"


def test_points_of_a_parquet_file(tmp_path: Path) -> None:
    rows = [{"label": "a", "cer": 0.01, "disk_mb": 4}, {"label": "b", "cer": 0.02, "disk_mb": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "points.parquet")
    first, second = read(tmp_path / "points.parquet", ["spelling"])["spelling"]
    assert (first.label, first.value("cer"), first.value("disk_mb")) == ("a", 0.01, 4)
    assert set(second.figures) == {"cer"}
    with pytest.raises(ValueError, match="is no Parquet file"):
        read(written(tmp_path, "label,cer\n", "other.parquet"), ["spelling"])


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_trials_of_a_study(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    journal = JournalStorage(JournalFileBackend(str(path))) if name.endswith(".log") else f"sqlite:///{path}"
    study = optuna.create_study(study_name="theirs", storage=journal, directions=["minimize", "minimize"])
    trial = study.ask({"bits": optuna.distributions.IntDistribution(2, 8)})
    trial.set_user_attr("cer_stderr", 0.001)
    trial.set_user_attr("host", "here")
    study.tell(trial, [0.01, 4.0])
    study.ask()  # has not finished
    with pytest.raises(ValueError, match="does not name its values: set_metric_names"):
        read(path, ["spelling"])
    study.set_metric_names(["cer", "disk_mb"])
    before = path.read_bytes()
    (point,) = read(path, ["spelling"])["spelling"]
    assert point.label == f"trial 0 (bits={trial.params['bits']})" and point.error("cer") == 0.001
    assert (point.value("cer"), point.value("disk_mb")) == (0.01, 4.0) and path.read_bytes() == before
    optuna.create_study(study_name="another", storage=journal)
    with pytest.raises(ValueError, match="must hold one study, and holds another, theirs"):
        read(path, ["spelling"])


def test_a_trial_has_its_label_and_its_corpus_as_attributes(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    study = optuna.create_study(storage=f"sqlite:///{path}", directions=["minimize", "minimize"])
    study.set_metric_names(["cer", "disk_mb"])
    for attributes in (
        {"corpus": "other", "label": "T5 small", "cer_stderr": 0.001},
        {"corpus": "spelling", "label": 3},
    ):
        trial = study.ask()
        for attribute, value in attributes.items():
            trial.set_user_attr(attribute, value)
        study.tell(trial, [0.01, 4.0])
    found = read(path, ["spelling", "other"])
    assert {title: [point.label for point in points] for title, points in found.items()} == {
        "spelling": ["trial 1"],
        "other": ["T5 small"],
    }
    study.tell(study.ask(), [0.01, 4.0])
    with pytest.raises(ValueError, match=r"row 3 of .* names no corpus: 'corpus' must be one of 'spelling', 'other'"):
        read(path, ["spelling", "other"])


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_what_is_no_study_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"study\.(db is no study of Optuna|log (is no study|must hold one study))"):
        read(written(tmp_path, "no study\n", name), ["spelling"])
