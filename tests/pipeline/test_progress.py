import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.host.progress import Reporter, duration
from slimexp.pipeline import progress
from slimexp.pipeline.progress import Progress


class Counting(pl.LightningModule):
    """A model that needs no data."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", 0.5, prog_bar=True)
        return self.weight.sum()

    def train_dataloader(self) -> Any:
        return range(60)

    def configure_optimizers(self) -> Any:
        import torch

        return torch.optim.SGD(self.parameters())


@pytest.fixture(autouse=True)
def _own_reporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other tests it knows how long nothing was printed."""
    monkeypatch.setattr(progress, "reporter", Reporter())


def lines(capsys: pytest.CaptureFixture[str], *, steps: int, accumulate: int = 1) -> list[str]:
    callback = build(compose().callback)["progress"]
    assert isinstance(callback, Progress)
    settings = {"max_steps": steps, "callbacks": [callback], "accumulate_grad_batches": accumulate, "logger": False}
    capsys.readouterr()
    build(compose(["trainer=cpu"]).trainer, **settings).fit(Counting())
    return capsys.readouterr().out.splitlines()


def test_a_log_gets_a_line_at_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [re.sub(r", \d+ s(, about \d+ s left)?$", "", line) for line in lines(capsys, steps=20)]
    assert shown == [f"  step {step} of 20, loss 0.5" for step in range(2, 21, 2)]
    shown = [line.split(", loss 0.5, ")[0] for line in lines(capsys, steps=3, accumulate=4)]
    assert shown == [f"  step {step} of 3" for step in (1, 2, 3)]


@pytest.mark.parametrize("took", [1, 4, 11])
def test_a_line_has_the_step_the_loss_and_the_times(
    took: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ten seconds at most, and before the reporter, whose line would have no loss."""
    now = [0.0]
    reporter = Reporter(lambda: now[0], watching=False)
    monkeypatch.setattr(progress, "reporter", reporter)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    callback = build(compose().callback)["progress"]
    trainer: Any = SimpleNamespace(max_steps=100, accumulate_grad_batches=1, loggers=[], global_step=0,
                                   progress_bar_metrics={"loss": 1.2345})  # fmt: skip
    for hook in ("on_train_start", "on_train_batch_end", "on_train_end"):
        monkeypatch.setattr(pl.callbacks.TQDMProgressBar, hook, lambda *_: None)
    callback.on_train_start(trainer, None)
    for step in range(100):
        for _ in range(min(took, 10)):
            now[0] += took / min(took, 10)
            if trainer.global_step:
                reporter.report()
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, None, None, None, step)
    callback.on_train_end(trainer, None)
    shown = capsys.readouterr().out.splitlines()
    with_loss = [line for line in shown if "loss 1.234" in line]
    assert with_loss[-1] == f"  step 100 of 100, loss 1.234, {duration(took * 99)}"
    assert f"  step 10 of 100, loss 1.234, {took * 9} s, about {duration(took * 91)} left" in with_loss
    assert all(line.startswith("  step ") for line in shown) and len(set(shown)) == len(shown)
    if took < 10:
        assert shown == with_loss and len(shown) <= took * 100 / 8 + 10


def test_the_time_left_of_a_resumed_training_is_by_its_own_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 steps 20 were done before: 10 s each, so that after 10 more about 2 700 s are left, and not 900."""
    now = [0.0]
    monkeypatch.setattr(progress, "reporter", Reporter(lambda: now[0], watching=False))
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for hook in ("on_train_start", "on_train_batch_end", "on_train_end"):
        monkeypatch.setattr(pl.callbacks.TQDMProgressBar, hook, lambda *_: None)
    callback = build(compose().callback)["progress"]
    trainer: Any = SimpleNamespace(max_steps=300, accumulate_grad_batches=1, loggers=[], global_step=20,
                                   progress_bar_metrics={})  # fmt: skip
    callback.on_train_start(trainer, None)
    for step in range(20, 31):
        now[0] += 10
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, None, None, None, step)
    callback.on_train_end(trainer, None)
    shown = capsys.readouterr().out.splitlines()
    assert f"  step 30 of 300, 90 s, about {duration(2710)} left" in shown


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    drawn = "\n".join(lines(capsys, steps=20))
    assert "training: 100%" in drawn and "20/20" in drawn and "step 20" not in drawn


def test_the_version_of_a_logger_is_no_metric() -> None:
    trainer = SimpleNamespace(loggers=[SimpleNamespace(version=3)], progress_bar_metrics={"loss": 1.0})
    assert Progress(refresh_rate=1).get_metrics(trainer, None) == {"loss": 1.0}  # type: ignore[arg-type]
