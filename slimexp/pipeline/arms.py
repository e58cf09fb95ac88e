"""Arms of a distillation: the same student without its teacher, and without training, which it is held against.

A student that is no better than the first owes nothing to its teacher, and one that is no better than the second
nothing to its training. An arm is a stage of its own: it starts from the same model, on the same text, by the same
settings and seed, so that what is cut, masked or rounded is the same in all three.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.loss.base import Loss
from slimexp.record.schema import NO_TEACHER, NO_TRAINING
from slimexp.technique.finetune import Finetune

# Keys of a stage: where a teacher is from, what is kept of it, and what it writes.
_TEACHERS = {"teacher", "cache", "completion"}
_STOPPERS = "slimexp.stopper."  # callbacks that end a trial for its own figures, which those of an arm are not


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A stage that another one is held against.

    Attributes:
        name: Its name, that of the other stage and its kind: ``distill_no_teacher``.
        of: Name of the other stage.
        kind: ``NO_TEACHER`` or ``NO_TRAINING``.
        cfg: Configuration of the run with the arm before the other stage.
        technique: Its technique.
    """

    name: str
    of: str
    kind: str
    cfg: DictConfig
    technique: Finetune

    def line(self, techniques: Mapping[str, Finetune]) -> dict[str, Finetune]:
        """The stages of the run by name, with the arm in the place of the other stage."""
        line = techniques.items()
        return dict((self.name, self.technique) if name == self.of else (name, stage) for name, stage in line)


def arms(cfg: DictConfig, techniques: Mapping[str, Finetune], *, trains_dense: bool) -> list[Arm]:
    """The arms of all stages that learn from a teacher; none unless the configuration asks for them.

    Args:
        cfg: The run's configuration, in which settings that were ``auto`` have their values.
        techniques: Technique of each stage, by the stage's name.
        trains_dense: Whether the first stage makes the dense model, which nothing is held against.

    Raises:
        ValueError: No stage learns from a teacher, one cannot be without training, or a name is taken.
    """
    if not cfg.arms:
        return []
    found = [
        _arm(kind, name, technique, cfg)
        for name, technique in list(techniques.items())[trains_dense:]
        if technique.steps and (technique.needs_teacher or _is_taught(cfg.pipeline[name]))
        for kind in (NO_TRAINING, NO_TEACHER)
    ]
    if not found:
        raise ValueError(
            "arms=true holds what learns from a teacher against the same without, and no stage trains with a loss that "
            "reads one: set arms=false, or add a loss, e.g. +loss@pipeline.<stage>.losses.kl=kl"
        )
    if taken := [arm.name for arm in found if arm.name in techniques]:
        raise ValueError(f"arms=true adds a stage '{taken[0]}', and there is one: give that another name")
    return found


def _arm(kind: str, of: str, technique: Finetune, cfg: DictConfig) -> Arm:
    name, own = f"{of}_{kind}", copy.deepcopy(cfg)
    with open_dict(own):
        own.arms = False
        own.callback = {key: node for key, node in own.callback.items() if not _stops(node)}
        node = copy.deepcopy(own.pipeline[of])
        _drop_teacher(node, technique, trains=kind == NO_TEACHER)
        own.pipeline = _inserted(own.pipeline, before=of, name=name, node=node)
    try:
        return Arm(name=name, of=of, kind=kind, cfg=own, technique=build(own.pipeline[name]))
    except ValueError as error:
        raise ValueError(f"arms=true: pipeline.{of} cannot be {kind.replace('_', ' ')}: {error}") from error


def _drop_teacher(node: DictConfig, technique: Finetune, *, trains: bool) -> None:
    """Leave a stage the losses on text, or no training at all.

    Where the objective was the teacher's alone, cross-entropy takes its place.
    """
    losses: Mapping[str, Loss] = dict(technique.losses.items())  # type: ignore[arg-type]
    text = {name: copy.deepcopy(node.losses[name]) for name, loss in losses.items() if not loss.needs_teacher}
    if all(losses[name].weight == 0 for name in text):
        text = {"ce": OmegaConf.load(CONF_DIR / "loss" / "cross_entropy.yaml")}
    node.losses = text if trains else {}
    for key in _TEACHERS & node.keys():
        node[key] = None
    if not trains:
        node.steps = 0


def _inserted(stages: DictConfig, *, before: str, name: str, node: DictConfig) -> dict[str, Any]:
    """The stages with another one before the stage ``before``; their text is as it was, interpolations included."""
    nodes = {str(key): stages._get_node(key) for key in stages}
    position = list(nodes).index(before)
    items = list(nodes.items())
    return dict([*items[:position], (name, node), *items[position:]])


def _is_taught(node: DictConfig) -> bool:
    """Whether a stage's targets are others than the text's."""
    return node.get("completion") is not None


def _stops(node: Any) -> bool:
    return str(node.get("_target_")).startswith(_STOPPERS)


def of_stage(found: Sequence[Arm], stage: str) -> list[Arm]:
    """The arms of a stage."""
    return [arm for arm in found if arm.of == stage]
