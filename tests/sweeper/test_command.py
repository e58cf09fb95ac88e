"""``hydra/sweeper=pareto`` as it is typed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from optuna.samplers import BaseSampler

from slimexp import record
from slimexp.config import CONF_DIR
from slimexp.sweeper.command import sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tiny_folder: Callable[..., Path], table: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Overrides -> status, stdout and stderr of a sweep over one-shot pruning of a tiny model."""
    base = [
        "-m", "hydra/sweeper=pareto", "pipeline=prune", "pipeline.prune.steps=0", "model=pretrained",
        f"model.path={tiny_folder('seq2seq')}", "model.max_length=16", "data=files", f"data.path={table}",
        "data.task=seq2seq", "logger=none", "trainer=fast", f"runs={tmp_path / 'runs'}",
    ]  # fmt: skip

    def call(*overrides: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "slimexp.train", *base, *overrides], cwd=ROOT, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    return call


def test_a_sweep_leaves_records_and_a_front_and_goes_on(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    status, out, err = command("pipeline.prune.sparsity=0.2,0.5,0.8", "hydra.sweeper.objectives={params_nonzero: min}")
    assert status == 0, err
    assert "[3/3]" in out and "front of params_nonzero after 3 trials" in out
    rows = record.read(tmp_path / "runs")
    assert sorted(row.stage for row in rows) == ["dense", "prune", "prune", "prune"]
    status, out, _ = command("pipeline.prune.sparsity=0.2,0.5,0.8", "hydra.sweeper.objectives={params_nonzero: min}")
    assert status == 0 and "3 of 3 trials are finished" in out and len(record.read(tmp_path / "runs")) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pipeline.prune.sparsty=0.2,0.5"], "sparsty"),
        (
            ["pipeline.prune.sparsity=0.2,much"],
            "pipeline.prune.sparsity of slimexp.technique.prune.Prune must be float",
        ),
        (["pipeline.prune.sparsity=0.2"], "nothing is swept"),
        (["pipeline.prune.sparsity=0.2,0.5", "hydra.sweeper.objectives={speed: max}"], "no measure of this run gives"),
        (["pipeline.prune.sparsity=interval(0.9,0.2)"], "needs an interval with low < high"),
    ],
)
def test_wrong_sweeps_are_one_error_before_the_first_trial(
    command: Callable[..., tuple[int, str, str]], overrides: list[str], message: str, tmp_path: Path
) -> None:
    status, _, err = command(*overrides)
    assert status == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": "two"}, r"workers must be a whole number, got 'two'"),
        ({"threads": True}, r"threads must be a whole number, got True"),
        ({"limits": {"disk_mb": "big"}}, r"limits must be metrics with a number each"),
        ({"objectives": ["cer"]}, r"objectives must be metrics with min or max each"),
        ({"seeds": 3}, r"seeds must be a list of whole numbers, got 3"),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any], message: str) -> None:
    shipped = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "hydra/sweeper/pareto.yaml"))
    assert isinstance(shipped, dict)
    with pytest.raises(ValueError, match=rf"hydra\.sweeper\.{message}"):
        sweep(["seed=1,2"], lambda overrides: OmegaConf.create(), {**shipped, **settings})  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF_DIR / "hydra/sweeper/sampler").glob("*.yaml")))
def test_every_sampler_is_one_of_optunas(name: str) -> None:
    from hydra.utils import instantiate

    sampler = instantiate(OmegaConf.load(CONF_DIR / "hydra/sweeper/sampler" / f"{name}.yaml"))()
    assert isinstance(sampler, BaseSampler)
