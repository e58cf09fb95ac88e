"""The judge of damaged files tells its outcomes apart: a child that does the forbidden thing is found out."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import child, damage, inputs, models, outcome, runs
from benchmarks.faults.__main__ import main, table
from benchmarks.faults.case import Case, Verdict, remove
from benchmarks.faults.child import HOME, Child
from benchmarks.faults.world import REPORT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("years of work")
    (tmp_path / HOME / "runs").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def judged(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Work of a child -> its outcome, where the undamaged command prints ``done 1`` and writes 1 into a file."""
    monkeypatch.setattr(child, "_resident", lambda pid: 0.0 if not (root / "grown").exists() else 9e9)

    def judge(work: Callable[[], Any], *, seconds: float = 20.0) -> str:
        before = outcome.snapshot(root, "runs")
        ended = Child(work, root).wait(seconds=seconds)
        after = outcome.snapshot(root, "runs")
        changed = next((name for name in before.keys() | after.keys() if before.get(name) != after.get(name)), None)
        file = root / HOME / "runs" / "figure"
        result = {"figure": float(file.read_text())} if file.exists() else {}
        return outcome.judge(
            ended, root, changed=changed, result=result, right={"figure": 1.0}, usual="done 1", differs=False
        )[0]

    return judge


def _write(text: str = "1", output: str = "done 2") -> None:
    Path("runs/figure").write_text(text)
    print(output)


def _refuse(status: int = 2, output: str = "error: it is damaged") -> None:
    print(output, file=sys.stderr)
    raise SystemExit(status)


WORKS: dict[str, tuple[Callable[[], Any], str]] = {
    "the usual": (lambda: _write(), "ok"),
    "a word and the usual": (lambda: _write(output="damaged, done again"), "redone"),
    "a word and nothing": (lambda: print("skipped it: damaged"), "skipped"),
    "another figure": (lambda: _write("2"), "silent"),
    "no figure": (lambda: print("done 3"), "silent"),
    "a refusal": (lambda: _refuse(), "refused"),
    "status without a word": (lambda: _refuse(output=""), "mute"),
    "a hundred lines": (lambda: _refuse(output="error: it\n" * 100), "mute"),
    "a bug": (lambda: {}["x"], "traceback"),
    "a bug that is shown and survived": (lambda: _write(output="Traceback (most recent call last)"), "traceback"),
    "code": (lambda: (Path("..") / outcome.CANARY).touch(), "code run"),
    "a shell's code": (lambda: os.system(f"touch ../{outcome.CANARY}"), "code run"),
    "a file of others changed": (lambda: Path("../victim/thesis.txt").write_text(""), "foreign touched"),
    "a file of others gone": (lambda: Path("../victim/thesis.txt").unlink(), "foreign touched"),
    "a new file outside": (lambda: Path("../victim/new").touch(), "foreign touched"),
    "a new folder beside the runs": (lambda: Path("other").mkdir(), "foreign touched"),
    "a signal": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
    "a colour": (lambda: _write(output="\x1b[31mred"), "escape"),
    "markup": (lambda: Path("runs/pareto.html").write_text(outcome.SCRIPT) and _write(), "escape"),
}


@pytest.mark.parametrize("name", WORKS)
def test_an_outcome_is_told(name: str, judged: Callable[..., str]) -> None:
    work, expected = WORKS[name]
    assert judged(work) == expected


def test_an_endless_loop_is_ended(judged: Callable[..., str]) -> None:
    assert judged(lambda: time.sleep(30), seconds=0.2) == "endless"


def test_what_grows_is_ended(judged: Callable[..., str], root: Path) -> None:
    assert judged(lambda: ((root / "grown").touch(), time.sleep(30))) in ("huge", "foreign touched")


@pytest.mark.parametrize("change", damage.CODE.values(), ids=list(damage.CODE))
def test_a_damaged_file_would_run_code(change: damage.Damage, root: Path, judged: Callable[..., str]) -> None:
    """Else nothing would be shown by a reader that does not run it."""
    import torch

    file = root / HOME / "runs" / "checkpoint.ckpt"
    change(file)
    assert judged(lambda: torch.load(file, weights_only=False)) == "code run"


def test_a_child_dies_at_the_change_that_is_asked_for(root: Path) -> None:
    def work() -> None:
        for number in range(5):
            Path(f"runs/{number}").touch()

    for dies_at in range(1, 5):
        ended = Child(work, root, dies_at=dies_at).wait()
        left = sorted(path.name for path in (root / HOME / "runs").iterdir())
        assert ended.status == -signal.SIGKILL and left == [str(number) for number in range(dies_at - 1)]
        for name in left:
            (root / HOME / "runs" / name).unlink()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Path]:
    """What cases are made from, without a run: the files whose values they change."""
    files = {
        "masked/manifest.json": {"format": 1, "attachments": [{"class": "x", "arguments": {}}]},
        "sharded/model.safetensors.index.json": {"weight_map": {"a": "b"}},
        "swept/s/sweep/journal.jsonl": {"op_code": 0},
        **{f"model/{name}.json": {"x": 1} for name in ("config", "generation_config", "tokenizer_config", "tokenizer")},
        **{f"{folder}/measures.json": {"x": 1} for folder in ("runs/p50/prune-1", "half/p50/dense-1")},
    }
    import json

    for name, content in files.items():
        path = tmp_path / "w" / HOME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    yield tmp_path / "w"
    remove(tmp_path / "w")


def test_there_are_enough_cases_and_each_has_a_name(world: Path) -> None:
    files = [*models.cases(world), *runs.cases(world)]
    wrong = list(inputs.cases())
    assert len(files) >= 300 and len(wrong) >= 200
    names = [(case.kind, case.name, case.command) for case in [*files, *wrong]]
    assert len(set(names)) > 0.95 * len(names)


def test_the_table_counts_by_kind_and_outcome() -> None:
    case = Case("config", "x", REPORT)
    verdicts = [Verdict(case, one, "", 0.0) for one in ("ok", "ok", "code run")]
    assert table(verdicts).splitlines()[-1] == "| all | 2 | 0 | 0 | 0 | 1 | 3 |"


def test_an_unknown_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Path) -> None:
    monkeypatch.setattr(child, "warm", lambda: None)
    (tmp_path / "scratch").mkdir()
    world.rename(tmp_path / "scratch" / "world")
    with pytest.raises(SystemExit, match="there is no kind nothing; there are manifest"):
        main(["--kind", "nothing", "--kills", "0", "--scratch", str(tmp_path / "scratch")])


@pytest.mark.slow
def test_a_sample_of_cases_is_judged(tmp_path: Path) -> None:
    assert main(["--kind", "manifest", "--every", "40", "--kills", "8", "--scratch", str(tmp_path)]) in (0, 1)
