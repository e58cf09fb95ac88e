"""Arms of a distillation: the same student without its teacher, and without training, which it is held against.

A student that is no better than the first owes nothing to its teacher, and one that is no better than the second
nothing to its training. An arm is a stage of its own: it starts from the same model, on the same text, by the same
settings and seed, so that what is cut, masked or rounded is the same in all three. Where a teacher or the student
writes targets (``completion``), the arm reads the gold ones: it is without all that comes of the teacher.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.data.base import Corpus
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


def arms(
    cfg: DictConfig,
    techniques: Mapping[str, Finetune],
    corpus: Corpus,
    *,
    trains_dense: bool,
    unlike: Collection[str] = (),
) -> list[Arm]:
    """The arms of all stages that learn from a teacher; none unless the configuration asks for them.

    Args:
        cfg: The run's configuration, in which settings that were ``auto`` have their values.
        techniques: Technique of each stage, by the stage's name.
        corpus: The text.
        trains_dense: Whether the first stage makes the dense model, which nothing is held against.
        unlike: Names of stages whose teacher has another tokenizer, so that their rows are padded.

    Raises:
        ValueError: No stage learns from a teacher, one cannot be without training, a name is taken, or a cache repeats
            text that an arm would get anew in every epoch.
    """
    if not cfg.arms:
        return []
    found = [
        _arm(kind, name, technique, cfg, pads=name in unlike)
        for name, technique in list(techniques.items())[trains_dense:]
        if technique.steps and (technique.needs_teacher or technique.completion is not None)
        for kind in (NO_TRAINING, NO_TEACHER)
    ]
    if not found:
        raise ValueError(
            "arms=true holds what learns from a teacher against the same without, and no stage trains with a loss that "
            "reads one: set arms=false, or add a loss, e.g. +loss@pipeline.<stage>.losses.kl=kl"
        )
    if taken := [arm.name for arm in found if arm.name in techniques]:
        raise ValueError(f"arms=true adds a stage '{taken[0]}', and there is one: give that another name")
    if repeating := [arm.of for arm in found if techniques[arm.of].cache is not None and not corpus.is_fixed]:
        raise ValueError(
            f"arms=true: pipeline.{repeating[0]}.cache repeats the first epochs of a text that is new in every epoch, "
            f"and the same without a teacher would read more: set pipeline.{repeating[0]}.cache=null, or arms=false"
        )
    return found


def _arm(kind: str, of: str, technique: Finetune, cfg: DictConfig, *, pads: bool) -> Arm:
    name, own = f"{of}_{kind}", copy.deepcopy(cfg)
    with open_dict(own):
        own.arms = False
        own.callback = {key: node for key, node in own.callback.items() if not _stops(node)}
        node = copy.deepcopy(own.pipeline[of])
        _drop_teacher(node, technique)
        if kind == NO_TRAINING:
            node.steps = 0
        if pads:
            node.packing = False
        own.pipeline = _inserted(own.pipeline, before=of, name=name, node=node)
    try:
        return Arm(name=name, of=of, kind=kind, cfg=own, technique=build(own.pipeline[name]))
    except ValueError as error:
        raise ValueError(f"arms=true: pipeline.{of} cannot be {kind.replace('_', ' ')}: {error}") from error


def _drop_teacher(node: DictConfig, technique: Finetune) -> None:
    """Leave a stage the losses on text; where the objective was the teacher's alone, cross-entropy takes its place.

    Without training too: what is masked may be chosen by them.
    """
    losses = technique.named_losses
    text = {name: copy.deepcopy(node.losses[name]) for name, loss in losses.items() if not loss.needs_teacher}
    if all(losses[name].weight_at(end) == 0 for name in text for end in (0.0, 1.0)):  # between them, it is monotone
        text = {"ce": OmegaConf.load(CONF_DIR / "loss" / "cross_entropy.yaml")}
    node.losses = text
    for key in _TEACHERS & node.keys():
        node[key] = None


def _inserted(stages: DictConfig, *, before: str, name: str, node: DictConfig) -> dict[str, Any]:
    """The stages with another one before the stage ``before``; their text is as it was, interpolations included."""
    nodes = {str(key): stages._get_node(key) for key in stages}
    position = list(nodes).index(before)
    items = list(nodes.items())
    return dict([*items[:position], (name, node), *items[position:]])


def _stops(node: Any) -> bool:
    return str(node.get("_target_")).startswith(_STOPPERS)


def of_stage(found: Sequence[Arm], stage: str) -> list[Arm]:
    """The arms of a stage."""
    return [arm for arm in found if arm.of == stage]
