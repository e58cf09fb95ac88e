"""Results are kept by weights: the same are not tested twice, and a damaged file is measured again."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimexp.data.base import Corpus
from slimexp.data.rows import Rows, Scores
from slimexp.measure.base import Subject, run
from slimexp.measure.by_question import ByQuestion
from slimexp.measure.score_store import ScoreStore
from slimexp.model.loading import from_folder


class Quiz(ByQuestion):
    """Two tests of four questions; a model that is the dense one gets all right."""

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self.asked: list[tuple[str, str]] = []

    def tests(self, subject: Subject, corpus: Corpus) -> Mapping[str, Mapping[str, Any]]:
        return {test: {"limit": self.limit} for test in ("sums", "words")}

    def results(self, names: Sequence[str], subject: Subject, corpus: Corpus) -> Mapping[str, Scores]:
        self.asked += [(name, subject.folder.name) for name in names]
        right = np.ones(self.limit) * (subject.folder.name != "small")
        rows = Rows(np.arange(self.limit, dtype=np.uint64), right, np.ones(self.limit))
        return {name: Scores({f"{name}_acc": rows.figure}, {f"{name}_acc": rows}) for name in names}


@pytest.fixture
def models(subjects: dict[str, Subject], tmp_path: Path) -> dict[str, Subject]:
    """Name -> the same model in another folder; ``small`` has another weight."""
    found = {}
    for name in ("dense", "copy", "small"):
        shutil.copytree(subjects["causal_lm"].folder, folder := tmp_path / name)
        (folder / "manifest.json").write_text(f'{{"stage": "{name}"}}')  # how it was made is no weight
        family = from_folder(folder, "causal_lm", 64)
        if name == "small":
            family.model.model.norm.weight.data[0] += 1
            family.model.save_pretrained(folder)
        found[name] = Subject(family, folder)
    return found


def _store(tmp_path: Path, *, code: str = "1", reuse: bool = True) -> ScoreStore:
    return ScoreStore(tmp_path / "runs", code=lambda measure: {"code": code}, reuse=reuse)


def test_the_same_weights_are_not_asked_twice(
    models: dict[str, Subject], corpora: dict[str, Corpus], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, quiz = corpora["causal_lm"], Quiz()

    def ask(name: str, measure: Quiz = quiz, **options: Any) -> dict[str, float]:
        measure.asked.clear()
        subject = replace(models[name], store=_store(tmp_path, **options))
        return measure.measure(subject, subject, corpus)

    first = ask("dense")
    assert quiz.asked == [("sums", "dense"), ("words", "dense")] and capsys.readouterr().out == ""
    assert ask("copy") == first and quiz.asked == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("  sums: these weights were tested before, reused from ")
    for options in ({"code": "2"}, {"reuse": False}, {"measure": Quiz(limit=3)}):
        measure = options.get("measure", quiz)
        ask("copy", **options)  # type: ignore[arg-type]
        assert len(measure.asked) == 2, options  # type: ignore[attr-defined]
    ask("small")
    assert len(quiz.asked) == 2


def test_a_damaged_file_is_measured_again(
    models: dict[str, Subject], corpora: dict[str, Corpus], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiz, subject = Quiz(), replace(models["dense"], store=_store(tmp_path))
    quiz.measure(subject, subject, corpora["causal_lm"])
    assert subject.store is not None
    taken = subject.store.taken(subject.folder)
    assert set(taken) == {"sums", "words"}
    (tmp_path / "runs" / taken["sums"]).write_bytes(b"torn")
    quiz.asked.clear()
    again = replace(models["dense"], store=_store(tmp_path))
    quiz.measure(again, again, corpora["causal_lm"])
    assert quiz.asked == [("sums", "dense")]
    assert "set aside as " in capsys.readouterr().out and (tmp_path / "runs" / taken["sums"]).stat().st_size > 100


def test_a_stage_is_compared_with_dense_question_by_question(
    models: dict[str, Subject], corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    quiz, store = Quiz(), _store(tmp_path)
    dense, small = (replace(models[name], store=store) for name in ("dense", "small"))
    assert "sums_acc_difference" not in run({"quiz": quiz}, dense, dense, corpora["causal_lm"])
    quiz.asked.clear()
    figures = run({"quiz": quiz}, small, dense, corpora["causal_lm"])
    assert quiz.asked == [("sums", "small"), ("words", "small")]  # dense was asked before
    assert figures["sums_acc"] == 0 and figures["sums_acc_difference"] == -1
    assert figures["sums_acc_difference_low"] == -1 < figures["sums_acc_difference_high"] < 0
