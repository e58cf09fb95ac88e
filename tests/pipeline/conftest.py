"""Runs that take a moment, ways to end one, and ways to damage what it leaves."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.file import integrity
from slimexp.pipeline import checkpoint
from slimexp.pipeline.pipeline import Pipeline
from slimexp.record import record

Make = Callable[..., Any]
Damage = Callable[[Path], None]
LAST = "prune"


@pytest.fixture(scope="session")
def pipeline() -> Make:
    """Command line -> its pipeline."""

    def make(arguments: Sequence[str]) -> Pipeline:
        cfg = compose(arguments)
        check(cfg)
        return Pipeline(cfg, overrides=list(arguments))

    return make


@pytest.fixture(scope="session")
def short() -> Make:
    """Stage (and steps) -> overrides by which it trains for a moment."""

    def make(stage: str, *, steps: int = 5) -> list[str]:
        return [f"pipeline.{stage}.{value}" for value in (f"steps={steps}", "batch_size=4", "optimizer.lr=0.01")]

    return make


@pytest.fixture(scope="session")
def weights() -> Make:
    """Pipeline -> weights of its last stage, as deployed."""

    def read(run: Pipeline) -> dict[str, Tensor]:
        return load_file(run.stages[-1].artifact / "model.safetensors")

    return read


@pytest.fixture(scope="session")
def same_tensors() -> Make:
    """Two sets of named tensors -> whether they are equal bit for bit."""

    def compare(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    return compare


@pytest.fixture(scope="session")
def records() -> Make:
    """Pipeline -> the lines of its file of records."""

    def read(run: Pipeline) -> list[dict[str, Any]]:
        lines = (Path(run.cfg.runs) / record.FILE).read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read


class Killed(BaseException):
    """Ends a run in a test."""


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    """The error by which ``kill_after`` ends a run."""
    return Killed


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Make:
    """End the run at the first batch after the n-th checkpoint."""

    def arm(count: int = 1) -> None:
        written, batch_end = [0], checkpoint.Checkpoint.on_train_batch_end

        def counting(self: Any, trainer: Any, *arguments: Any) -> None:
            if written[0] >= count:
                raise Killed
            before = self._last_step
            batch_end(self, trainer, *arguments)
            written[0] += self._last_step != before

        monkeypatch.setattr(checkpoint.Checkpoint, "on_train_batch_end", counting)

    return arm


# Ways to damage a file, or to put something else in its place.


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_at_the_end(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_bytes(bytes(reversed(path.read_bytes())))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"}")


def missing(path: Path) -> None:
    integrity.remove(path)


def folder(path: Path) -> None:
    integrity.remove(path)
    (path / "below").mkdir(parents=True)


def pipe(path: Path) -> None:
    integrity.remove(path)
    os.mkfifo(path)


def link_to_nothing(path: Path) -> None:
    integrity.remove(path)
    path.symlink_to("nowhere")


def huge(path: Path) -> None:
    os.truncate(path, integrity.LARGEST + 1)


DAMAGES = {
    way.__name__: way
    for way in (cut, cut_at_the_end, empty, other, flip, longer, missing, folder, pipe, link_to_nothing, huge)
}


@pytest.fixture
def damage(request: pytest.FixtureRequest) -> Damage:
    """A way in which a file is damaged: one of ``DAMAGES`` by its name, or a function of the test's own."""
    damage: Damage = DAMAGES[request.param] if isinstance(request.param, str) else request.param
    return damage


class Run:
    """A dense model and its pruning, in a folder of its own."""

    def __init__(self, arguments: list[str], runs: Path) -> None:
        self.arguments = [*arguments, f"runs={runs}"]
        self.runs = runs

    def pipeline(self, *more: str) -> Pipeline:
        cfg = compose([*self.arguments, *more])
        check(cfg)
        return Pipeline(cfg, overrides=[])

    def stage(self, name: str = LAST) -> Path:
        (folder,) = self.runs.glob(f"run/{name}-*")
        return folder

    def files(self) -> dict[str, bytes]:
        """What must be the same: all of the artifacts, and the curves."""
        paths = [*self.runs.glob("run/*/artifact/*"), *self.runs.glob("run/*/curves.jsonl")]
        return {str(path.relative_to(self.runs)): path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def command(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command line of a run that prunes in five steps, without its runs folder."""
    home = tmp_path_factory.mktemp("home")
    family = tiny("seq2seq")
    family.model.save_pretrained(home / "dense")
    family.tokenizer.save_pretrained(home / "dense")
    rows = [f"{i} one,{i} two,{i},no" for i in range(40)]
    (home / "table.csv").write_text("\n".join(["source,target,text,label", *rows]) + "\n")
    return [
        "name=run", "model=pretrained", f"model.path={home / 'dense'}", "model.max_length=16", "data=files",
        f"data.path={home / 'table.csv'}", "data.task=seq2seq", f"pipeline={LAST}", "logger=none", "trainer=fast",
        "measure=[size]", f"pipeline.{LAST}.steps=5", f"pipeline.{LAST}.batch_size=4", f"pipeline.{LAST}.every=1",
        f"pipeline.{LAST}.optimizer.lr=0.01", "checkpoint.every_steps=1", "checkpoint.every_seconds=0",
        "checkpoint.share=null", "trainer.log_every_n_steps=1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def finished(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, float]]:
    """A run to its end, and its figures."""
    run = Run(command, tmp_path_factory.mktemp("finished"))
    return run, run.pipeline().run()


@pytest.fixture(scope="session")
def stopped(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was killed at its third step."""
    run = Run(command, tmp_path_factory.mktemp("stopped"))
    with pytest.MonkeyPatch.context() as patch:
        start = checkpoint.Checkpoint.on_train_batch_start

        def dying(self: Any, *of_batch: Any) -> None:
            start(self, *of_batch)
            if of_batch[-1] == 3:
                raise KeyboardInterrupt

        patch.setattr(checkpoint.Checkpoint, "on_train_batch_start", dying)
        with pytest.raises(KeyboardInterrupt):
            run.pipeline().run()
    return run


@pytest.fixture
def new_run(command: list[str]) -> Callable[..., Run]:
    """Folder (and overrides) -> a run of the same command that writes there."""
    return lambda runs, *more: Run([*command, *more], runs)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Run], Run]:
    """Run -> the same in a folder of the test's own."""

    def make(run: Run) -> Run:
        shutil.copytree(run.runs, tmp_path / "runs", dirs_exist_ok=True)
        return Run(run.arguments[:-1], tmp_path / "runs")

    return make


@pytest.fixture
def again(
    finished: tuple[Run, dict[str, float]], fits: list[str], capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Run], list[str]]]:
    """Repeat a run's command: it ends as the undamaged one did; returns the lines of its output on damage."""

    def repeat(run: Run) -> list[str]:
        capsys.readouterr()
        straight, figures = finished
        assert run.pipeline().run() == figures
        assert run.files() == straight.files()
        metrics, expected = (
            {row.key: row.metrics for row in record.read(repeated.runs)} for repeated in (run, straight)
        )
        assert metrics == expected
        output = capsys.readouterr()
        assert output.err == ""
        return [line for line in output.out.splitlines() if " is damaged (" in line]

    yield repeat
