"""Every YAML file under conf/ composes, names what exists, and gives it keys that it reads."""

from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from slimexp.config import binding
from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.composition import CONF_DIR, chosen, compose

ROOT = CONF_DIR.parent
FILES = sorted(path.relative_to(CONF_DIR).with_suffix("") for path in CONF_DIR.glob("*/**/*.yaml"))
EXPERIMENTS = [path.name for path in FILES if path.parts[0] == "experiment"]
COMPONENTS = [path for path in FILES if path.parts[0] not in ("experiment", "hydra")]
ROOMS = {"data", "importance", "pattern", "quantizer", "loss", "technique", "measure"}  # one file, one YAML, one test
ROOMS |= {"allocation", "budget", "completion", "cut", "rounding", "smoothing", "stopper", "teacher_cache"}
MODULES = ("schedule",)  # groups that one module holds


@cache
def probes(group: str) -> DictConfig:
    """All components of a group in a whole config (in a dict that takes any name): what they interpolate is there."""
    names = [path.name for path in COMPONENTS if path.parent.as_posix() == group]
    return compose([f"+{group}@measure.probe_{name}={name}" for name in names]).measure


def component(path: Path) -> DictConfig:
    return probes(path.parent.as_posix())[f"probe_{path.name}"]


@pytest.mark.parametrize("path", COMPONENTS, ids=str)
def test_component_binds(path: Path) -> None:
    probe = component(path)
    faults = [*binding.faults("probe", probe._get_parent(), f"probe_{path.name}")]
    for below, parent, key in binding.items(probe, "probe"):
        faults += binding.faults(below, parent, key)
    assert [fault for fault in faults if "has no value" not in fault] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_is_complete(name: str) -> None:
    """A recipe takes any model, and leaves its path open; nothing else is missed."""
    lines = [f"+experiment={name}"]
    cfg = compose(lines)
    check(compose([*lines, "model.path=zoo:t5_spelling"]) if OmegaConf.is_missing(cfg.model, "path") else cfg)


@pytest.mark.parametrize("path", [path for path in COMPONENTS if path.parts[0] in ROOMS], ids=str)
def test_one_word_everywhere(path: Path) -> None:
    room, name = path.parts
    target = component(path)._target_
    assert target.rpartition(".")[0] == f"slimexp.{room}.{name}"
    assert (ROOT / "tests" / room / f"test_{name}.py").is_file(), f"tests/{room}/test_{name}.py is missing"


@pytest.mark.parametrize("path", [path for path in COMPONENTS if path.parts[0] in MODULES], ids=str)
def test_a_small_group_is_a_module_of_its_name(path: Path) -> None:
    assert component(path)._target_.rpartition(".")[0] == f"slimexp.{path.parts[0]}"
    assert (ROOT / "tests" / f"test_{path.parts[0]}.py").is_file()


@pytest.mark.fast
@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "measure"], ids=str)
def test_measure_names_its_place(path: Path) -> None:
    """``measure=[size,task]`` lays the files side by side only when each says where it goes."""
    first = (CONF_DIR / path).with_suffix(".yaml").read_text().splitlines()[0]
    assert first == f"# @package measure.{path.name}"


@pytest.mark.fast
def test_experiment_is_absent_from_the_defaults() -> None:
    """Hydra refuses ``+experiment=x`` otherwise."""
    assert "experiment:" not in (CONF_DIR / "config.yaml").read_text()


@pytest.mark.parametrize("path", [p for p in COMPONENTS if p.parts[0] in ("optimizer", "lr_scheduler")], ids=str)
def test_training_can_call_it(path: Path) -> None:
    """A partial binds only when it is called: with the arguments that ``Finetune`` gives."""
    import torch

    from slimexp.technique.automatic import Conditions, settled

    weight, plain = torch.nn.Parameter(torch.ones(2)), compose(["pipeline=finetune"]).pipeline.finetune
    made = {name: build(plain[name]) for name in ("optimizer", "lr_scheduler")}
    made[path.parts[0]] = build(component(path))
    optimizer, schedule, _ = settled(**made, given=Conditions(parameters=1), steps=10)
    schedule(optimizer=optimizer([{"params": [weight]}]), num_training_steps=10).step()


def test_what_an_experiment_sets_of_a_measure_that_was_not_chosen_is_no_measure() -> None:
    cfg = compose(["+experiment=front_t5", "measure=[size]"])
    assert "limit" in cfg.measure.task and list(chosen(cfg.measure)) == ["size"]
