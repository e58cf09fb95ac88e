"""Every W&B sweep file names real parameters, in their range, and a metric that the run writes into its summary."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.pipeline.preflight import FINAL
from sweeps import workspace

FILES = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load(path.read_text())
    return sweep


def values(parameter: dict[str, Any]) -> list[Any]:
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def overrides(sweep: dict[str, Any]) -> list[str]:
    """The command's own, without the arguments that W&B puts in."""
    env, python, flag, module, *given, arguments = sweep["command"]
    assert (env, python, flag, module) == ("${env}", "python", "-m", "slimexp.train")
    assert arguments == "${args_no_hyphens}"  # key=value, as Hydra reads it
    return given


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_of_every_parameter_composes(path: Path) -> None:
    sweep = load(path)
    first = {key: values(parameter)[0] for key, parameter in sweep["parameters"].items()}
    for key, parameter in sweep["parameters"].items():
        assert len(set(map(str, values(parameter)))) > 1, f"{key} goes through nothing"
        for value in values(parameter):
            chosen = {**first, key: value}
            cfg = compose([*overrides(sweep), *(f"{name}={one}" for name, one in chosen.items())])
            check(cfg)
            for technique in cfg.pipeline.values():
                build(technique)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_metric_is_one_of_the_run(path: Path) -> None:
    sweep = load(path)
    cfg = compose(overrides(sweep))
    stage, metric = sweep["metric"]["name"].split("/")
    ways = {pattern: way for node in cfg.measure.values() for pattern, way in build(node).directions.items()}
    (way,) = {way for pattern, way in ways.items() if fnmatchcase(metric, pattern)}
    assert stage == FINAL and sweep["metric"]["goal"] == f"{way}imize"


@pytest.mark.parametrize("name", ["prune_quantize_distill", "quantize_prune_distill", "prune_distill_quantize"])
def test_a_chain_runs_in_the_order_of_its_name(name: str) -> None:
    cfg = compose(["+experiment=chain_t5", f"pipeline={name}"])
    assert list(cfg.pipeline) == name.split("_") and cfg.pipeline.prune.sparsity == 0.25


def test_the_workspace_names_what_the_sweep_has() -> None:
    """It is built without a network; whether W&B's server takes it, no test without an account can tell."""
    pytest.importorskip("wandb_workspaces")
    built = workspace.build("team", "slimexp", "front_t5")
    (section,) = built.sections
    assert len(section.panels) == 3 and built.name == "Front of front_t5"
    cfg = compose(["+experiment=front_t5"])
    assert all(OmegaConf.select(cfg, key) is not None for key in workspace.SETTINGS)
    ways = {pattern for node in cfg.measure.values() for pattern in build(node).directions}
    for name in workspace.METRICS:
        stage, metric = name.split("/")
        assert stage == FINAL and any(fnmatchcase(metric, pattern) for pattern in ways)
