"""A training small enough for a test, and an environment without an account of W&B."""

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B finds no credentials."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


class Line(pl.LightningModule):
    """One weight, whose loss is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"leaks": "into the run's configuration"})
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = (self.weight * batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _fit(loggers: list[pl.loggers.Logger], steps: int, folder: Path, resume: Path | None = None) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        logger=loggers, max_steps=steps, log_every_n_steps=2, accelerator="cpu", default_root_dir=folder, **quiet
    )
    batches = torch.utils.data.DataLoader(torch.ones(100), batch_size=4)  # all equal: this loader cannot resume
    trainer.fit(Line(), batches, ckpt_path=resume)
    return trainer


@pytest.fixture
def fit() -> Callable[..., pl.Trainer]:
    """Train ``Line`` with loggers, for a number of steps, in a folder; from a checkpoint where one is given."""
    return _fit
