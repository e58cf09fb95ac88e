"""Fitting a technique as the pipeline does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def fit() -> Callable[..., Any]:
    """Technique -> the trainer that fitted it, seeded, with nothing on screen."""
    import pytorch_lightning as pl

    from slimexp.config import build, compose

    def run(technique: Any, *, resume: Path | None = None, **settings: Any) -> Any:
        pl.seed_everything(0, verbose=False)
        values = {"max_steps": technique.steps, "logger": False, "accumulate_grad_batches": technique.accumulate}
        trainer = build(compose(["trainer=fast"]).trainer, **values | settings)
        trainer.fit(technique, ckpt_path=resume, weights_only=True)
        return trainer

    return run
