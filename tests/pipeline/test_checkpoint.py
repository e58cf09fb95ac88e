"""When a checkpoint is written, and that the one before it outlives a write that fails."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.plugins.io import TorchCheckpointIO

from slimexp.file import integrity
from slimexp.pipeline import checkpoint
from slimexp.pipeline.checkpoint import Checkpoint

pytestmark = pytest.mark.fast


class Run:
    """A trainer of 20 optimizer steps, in which a batch takes a second."""

    def __init__(self, callback: Checkpoint, *, accumulate: int = 1, start: int = 0) -> None:
        self.callback, self.accumulate = callback, accumulate
        self.clock, self.batch, self.start = 0.0, start * accumulate, start
        self.strategy = SimpleNamespace(checkpoint_io=TorchCheckpointIO())
        self.saved: list[tuple[int, int]] = []
        self.takes = 0.0

    @property
    def trainer(self) -> Any:
        return SimpleNamespace(
            global_step=self.batch // self.accumulate,
            max_steps=20,
            accumulate_grad_batches=self.accumulate,
            save_checkpoint=self.save,
            strategy=self.strategy,
        )

    def save(self, path: Path) -> None:
        self.saved.append((self.batch // self.accumulate, self.batch % self.accumulate))
        path.write_text(str(self.saved[-1][0]))
        self.clock += self.takes

    def go(self) -> list[int]:
        """Steps at which it was saved."""
        self.callback.on_train_start(self.trainer, None)  # type: ignore[arg-type]
        while self.batch < 20 * self.accumulate:
            index = self.batch
            self.callback.on_train_batch_start(self.trainer, None, None, index)  # type: ignore[arg-type]
            self.batch += 1
            self.clock += 1
            self.callback.on_train_batch_end(self.trainer, None, None, None, index)  # type: ignore[arg-type]
        assert all(rest == 0 for _, rest in self.saved), "saved in the middle of an accumulation"
        return [step for step, _ in self.saved]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    def make(*, every_steps: int, every_seconds: float, share: float | None = None, **settings: Any) -> Run:
        callback = Checkpoint(
            path=tmp_path / "checkpoint.ckpt", key="k", curves=tmp_path / "curves.jsonl",
            every_seconds=every_seconds, every_steps=every_steps, share=share,
        )  # fmt: skip
        run = Run(callback, **settings)
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda: run.clock)
        return run

    return make


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_every_so_many_optimizer_steps_but_not_after_the_last(start: Callable[..., Run], accumulate: int) -> None:
    assert start(every_steps=5, every_seconds=0, accumulate=accumulate).go() == [5, 10, 15]
    assert start(every_steps=1, every_seconds=0, accumulate=accumulate).go() == list(range(1, 20))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_not_before_its_time_and_only_between_optimizer_steps(start: Callable[..., Run], accumulate: int) -> None:
    """Half of an accumulated gradient is in no checkpoint."""
    saved = start(every_steps=1, every_seconds=7, accumulate=accumulate).go()
    assert saved and all((later - earlier) * accumulate >= 7 for earlier, later in pairwise([0, *saved]))


def test_no_oftener_than_costs_its_share_of_the_time(start: Callable[..., Run]) -> None:
    """A step takes a second, and a checkpoint half of one."""
    for share, expected in ((None, [1, 2, 3, 4]), (0.5, [1, 2, 3, 4]), (0.25, [1, 3, 5, 7]), (0.1, [1, 6, 11, 16])):
        run = start(every_steps=1, every_seconds=0, share=share)
        run.takes = 0.5
        assert run.go()[:4] == expected


def test_a_resumed_run_counts_from_where_it_starts(start: Callable[..., Run]) -> None:
    assert start(every_steps=5, every_seconds=0, start=7).go() == [12, 17]


def test_it_has_its_name_once_the_step_is_logged(
    start: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning logs between the end of a batch and the start of the next: the curves are on the disk first."""
    (tmp_path / "curves.jsonl").touch()
    done: list[str] = []
    monkeypatch.setattr(integrity, "sync", lambda path: done.append(path.name))
    callback = start(every_steps=1, every_seconds=0).callback
    trainer: Any = SimpleNamespace(
        global_step=1, max_steps=3, accumulate_grad_batches=1, save_checkpoint=lambda path: path.write_text("1"),
        strategy=SimpleNamespace(checkpoint_io=TorchCheckpointIO()),
    )  # fmt: skip
    callback.on_train_start(SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
    callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert not callback.path.exists() and done == []
    callback.on_train_batch_start(trainer, None, None, 1)  # type: ignore[arg-type]
    assert callback.path.read_text() == "1" and done[:2] == ["curves.jsonl", "checkpoint.partial"]
    callback.on_train_batch_start(trainer, None, None, 2)  # type: ignore[arg-type]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint.ckpt", "curves.jsonl"]


def test_the_one_before_outlives_a_write_that_fails(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(every_steps=5, every_seconds=0)
    save = run.save

    def fill_the_disk(path: Path) -> None:
        save(path)
        if run.saved[-1][0] == 10:
            raise OSError(28, "No space left on device")

    run.save = fill_the_disk  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        run.go()
    assert (tmp_path / "checkpoint.ckpt").read_text() == "5"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.ckpt"]
