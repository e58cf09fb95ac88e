"""Training returns what a sweeper optimises."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.config.command_line import main
from slimexp.train import train


@pytest.mark.parametrize(("measure", "measured"), [("[size]", False), ("[task]", True)])
def test_the_objective_is_the_headline_if_it_is_measured(
    tiny_folder: Callable[..., Path], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    measure: str, measured: bool,
) -> None:  # fmt: skip
    arguments = [
        "model=pretrained", f"model.path={tiny_folder('seq2seq')}", "model.max_length=16", "data=files",
        f"data.path={table}", "data.task=seq2seq", "pipeline=prune", "pipeline.prune.steps=0", "logger=none",
        f"runs={tmp_path / 'runs'}", f"measure={measure}",
    ]  # fmt: skip
    returned: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    main(lambda cfg: returned.append(train(cfg)))
    assert [value is not None for value in returned] == [measured]
