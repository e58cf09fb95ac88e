"""A checkpoint that a thread writes is that of its step, is named when it is whole, and costs nothing if it fails."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from slimexp.pipeline import background_writer
from slimexp.pipeline.background_writer import BackgroundWriter, nbytes, snapshot
from slimexp.pipeline.checkpoint import Checkpoint, check

Make = Callable[..., Any]


class Gate:
    """Holds a thread back in ``torch.save`` until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.error: Exception | None = None
        save = torch.save

        def held(state: Any, path: Path) -> None:
            path.write_bytes(b"half")
            self.reached.set()
            assert self.open.wait(20)
            if self.error is not None:
                raise self.error
            save(state, path)

        monkeypatch.setattr(background_writer.torch, "save", held)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is too small for a thread."""
    monkeypatch.setattr(background_writer, "SMALL", 0)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, always: None) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


@pytest.mark.fast
def test_a_snapshot_shares_nothing_and_keeps_what_is_tied_and_attached() -> None:
    weight = torch.arange(6.0).view(2, 3)
    weights: Any = OrderedDict(a=weight, b=weight.view(2, 3), row=weight[1])
    weights._metadata = {"version": 2}
    state = {"weights": weights, "optimizer": [{"step": torch.tensor(3.0), "betas": (0.9, 0.99)}], "key": "k", "n": 1}
    copied = snapshot(state)
    weight.zero_()
    state["optimizer"][0]["step"].add_(1)
    assert copied["weights"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and copied["weights"]["row"].tolist() == [3, 4, 5]
    assert copied["weights"]["a"] is copied["weights"]["b"] and copied["weights"]._metadata == {"version": 2}
    assert copied["optimizer"] == [{"step": torch.tensor(3.0), "betas": (0.9, 0.99)}] and copied["key"] == "k"
    assert nbytes(state) == 24 + 24 + 12 + 4


def test_what_is_written_is_the_state_at_the_call(gate: Gate, tmp_path: Path) -> None:
    writer, weight = BackgroundWriter(TorchCheckpointIO()), torch.ones(3)
    writer.save_checkpoint({"weight": weight}, tmp_path / "a")
    assert gate.reached.wait(20) and not writer.is_done
    weight.zero_()
    gate.open.set()
    writer.finish()
    assert writer.is_done and torch.load(tmp_path / "a")["weight"].tolist() == [1, 1, 1]


def test_what_is_the_checkpoints_own_is_written_from_where_it_is(gate: Gate, tmp_path: Path) -> None:
    """It needs no memory besides, whose lack would have the training wait for the disk."""
    writer, part, rest = BackgroundWriter(TorchCheckpointIO(), own=("part",)), torch.ones(3), torch.ones(3)
    writer.save_checkpoint({"part": {"weight": part}, "rest": rest}, tmp_path / "a")
    assert gate.reached.wait(20)
    part.zero_()  # which nothing but a test can do
    rest.zero_()
    gate.open.set()
    writer.finish()
    saved = torch.load(tmp_path / "a")
    assert saved["part"]["weight"].tolist() == [0, 0, 0] and saved["rest"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("small", "memory"), [(1000, 0.8), (0, 0.0)])
def test_a_small_state_and_one_that_memory_cannot_hold_twice_are_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, memory: float
) -> None:
    monkeypatch.setattr(background_writer, "SMALL", small)
    monkeypatch.setattr(background_writer, "_MEMORY", memory)
    writer = BackgroundWriter(TorchCheckpointIO())
    writer.save_checkpoint({"weight": torch.ones(3)}, tmp_path / "a")
    assert writer._thread is None and torch.load(tmp_path / "a")["weight"].tolist() == [1, 1, 1]


def test_an_error_of_the_thread_is_raised_once_where_it_is_waited_for(gate: Gate, tmp_path: Path) -> None:
    gate.error = OSError(28, "No space left on device")
    writer = BackgroundWriter(TorchCheckpointIO())
    writer.save_checkpoint({}, tmp_path / "a")
    gate.open.set()
    with pytest.raises(OSError, match="No space left"):
        writer.finish()
    writer.finish()


# --- in training ----------------------------------------------------------------------------------


class Training:
    """Six steps with a checkpoint due after each; ``after`` runs at the end of a step."""

    def __init__(self, tiny: Make, corpus: Make, technique: Make, fit: Make, folder: Path) -> None:
        self.stage = technique("finetune", steps=6)
        self.stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
        self.fit, self.folder = fit, folder
        (folder / "curves").write_text("")
        self.callback = Checkpoint(
            path=folder / "c.ckpt", key="k", curves=folder / "curves", every_seconds=0, every_steps=1
        )
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def go(self, after: Callable[[int], None] = lambda step: None, **options: Any) -> Any:
        import pytorch_lightning as pl

        outer = self

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                weights = outer.stage.model.state_dict().items()
                outer.states[trainer.global_step] = {name: weight.clone() for name, weight in weights}
                after(trainer.global_step)

        return self.fit(self.stage, callbacks=[self.callback, Watch()], **options)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.suffix in (".ckpt", ".partial"))

    def assert_whole(self, step: int) -> None:
        assert self.names == ["c.ckpt"] and check(self.folder / "c.ckpt", "k").step == step
        saved = torch.load(self.folder / "c.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(saved[f"model.{name}"], value) for name, value in self.states[step].items())


@pytest.fixture
def training(tiny: Make, corpus: Make, technique: Make, fit: Make, tmp_path: Path) -> Training:
    return Training(tiny, corpus, technique, fit, tmp_path)


def test_training_goes_on_while_one_is_written_and_waits_for_it_at_its_end(training: Training, gate: Gate) -> None:
    def after(step: int) -> None:
        assert gate.reached.wait(20) and training.names == ["c.partial"]
        if step == 6:
            gate.open.set()

    training.go(after)
    training.assert_whole(step=1)


def test_the_next_is_taken_when_the_one_before_has_its_name(training: Training, gate: Gate) -> None:
    def after(step: int) -> None:
        if step == 3:
            gate.open.set()
            assert training.callback._writer is not None
            training.callback._writer._thread.join()

    training.go(after)
    assert check(training.folder / "c.ckpt", "k").step in (4, 5)
    training.assert_whole(check(training.folder / "c.ckpt", "k").step)


def test_a_failure_of_the_thread_ends_training_and_leaves_the_one_before(training: Training, gate: Gate) -> None:
    gate.open.set()

    def after(step: int) -> None:
        assert training.callback._writer is not None
        if (thread := training.callback._writer._thread) is not None:
            thread.join()
        if step == 2:
            gate.error = OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        training.go(after)
    assert max(training.states) == 3
    training.assert_whole(step=2)


def test_an_error_of_training_keeps_the_checkpoint_of_a_logged_step(training: Training, gate: Gate) -> None:
    def after(step: int) -> None:
        if step == 3:
            gate.open.set()
            raise ValueError("of training")

    with pytest.raises(ValueError, match="of training"):
        training.go(after)
    training.assert_whole(step=1)


def test_an_error_before_its_step_is_logged_drops_the_checkpoint(training: Training, gate: Gate) -> None:
    gate.open.set()

    def after(step: int) -> None:
        raise ValueError("of training")

    with pytest.raises(ValueError, match="of training"):
        training.go(after)
    assert training.names == []


def test_a_run_resumed_from_one_equals_the_straight_run(
    training: Training, always: None, tiny: Make, corpus: Make, technique: Make, fit: Make
) -> None:
    training.go()
    assert 1 <= check(training.folder / "c.ckpt", "k").step <= 5
    again = Training(tiny, corpus, technique, fit, training.folder)
    again.go(resume=training.folder / "c.ckpt")
    assert all(torch.equal(again.states[6][name], value) for name, value in training.states[6].items())


@pytest.mark.gpu
def test_the_state_of_a_gpu_is_copied_aside(always: None, tmp_path: Path) -> None:
    writer, weight = BackgroundWriter(TorchCheckpointIO()), torch.ones(2**20, device="cuda")
    writer.save_checkpoint({"weight": weight, "tied": weight}, tmp_path / "a")
    weight.zero_()
    writer.finish()
    saved = torch.load(tmp_path / "a")
    assert saved["weight"].device.type == "cpu" and saved["weight"].sum() == 2**20
    assert saved["tied"].data_ptr() == saved["weight"].data_ptr() and writer.copy_seconds > 0
