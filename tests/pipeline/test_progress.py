import sys
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl

from slimexp.config.build import build
from slimexp.config.composition import compose
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


def lines(capsys: pytest.CaptureFixture[str], *, steps: int, accumulate: int = 1) -> list[str]:
    callback = build(compose().callback)["progress"]
    assert isinstance(callback, Progress)
    settings = {"max_steps": steps, "callbacks": [callback], "accumulate_grad_batches": accumulate, "logger": False}
    capsys.readouterr()
    build(compose(["trainer=cpu"]).trainer, **settings).fit(Counting())
    return capsys.readouterr().out.splitlines()


def test_a_log_gets_a_line_at_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, steps=20) == [f"  step {step} of 20, loss 0.5" for step in range(2, 21, 2)]
    assert lines(capsys, steps=3, accumulate=4) == [f"  step {step} of 3, loss 0.5" for step in (1, 2, 3)]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    drawn = "\n".join(lines(capsys, steps=20))
    assert "training: 100%" in drawn and "20/20" in drawn and "step 20" not in drawn


def test_the_version_of_a_logger_is_no_metric() -> None:
    trainer = SimpleNamespace(loggers=[SimpleNamespace(version=3)], progress_bar_metrics={"loss": 1.0})
    assert Progress(refresh_rate=1).get_metrics(trainer, None) == {"loss": 1.0}  # type: ignore[arg-type]
