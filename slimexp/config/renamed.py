"""Names of earlier versions: classes by dotted path, keys and options of configurations, and what they are called now.

Artifacts, records, sweeps and W&B runs hold such names and are never rewritten: they are translated when they are read.
"""

from collections.abc import Mapping
from typing import Any

# Every class that conf/ or a manifest could name and that has moved or changed its name.
CLASSES = {
    "slimexp.allocation.MixedPrecision": "slimexp.allocation.mixed_precision.MixedPrecision",
    "slimexp.allocation.Sensitivity": "slimexp.allocation.sensitivity.SensitivityAllocation",
    "slimexp.importance.mask.Mask": "slimexp.weight.mask.Mask",
    "slimexp.model.loading.CutOut": "slimexp.cut.source.CutOut",
    "slimexp.model.surgery.Cut": "slimexp.cut.keep.Keep",
    "slimexp.progress.Progress": "slimexp.pipeline.progress.Progress",
    "slimexp.rounding.GPTQ": "slimexp.rounding.gptq.GPTQ",
    "slimexp.smoothing.AWQ": "slimexp.smoothing.awq.AWQ",
    "slimexp.smoothing.SmoothQuant": "slimexp.smoothing.smoothquant.SmoothQuant",
    "slimexp.stopper.Halving": "slimexp.stopper.asha.Asha",
    "slimexp.stopper.Median": "slimexp.stopper.median.Median",
    "slimexp.target.disk.Disk": "slimexp.budget.disk.Disk",
    "slimexp.target.latency.Latency": "slimexp.budget.latency.Latency",
    "slimexp.target.parameters.Parameters": "slimexp.budget.parameters.Parameters",
    "slimexp.technique.allocation.Sensitivity": "slimexp.allocation.sensitivity.SensitivityAllocation",
    "slimexp.technique.gptq.GPTQ": "slimexp.rounding.gptq.GPTQ",
    "slimexp.technique.mixed_precision.MixedPrecision": "slimexp.allocation.mixed_precision.MixedPrecision",
    "slimexp.technique.smoothing.AWQ": "slimexp.smoothing.awq.AWQ",
    "slimexp.technique.smoothing.SmoothQuant": "slimexp.smoothing.smoothquant.SmoothQuant",
    "slimexp.tracker.Silent": "slimexp.logger.none.Silent",
    "slimexp.tracker.Wandb": "slimexp.logger.wandb.Wandb",
}
# Options that a class got later -> what it did before it had them.
LATER: dict[str, dict[str, Any]] = {
    "slimexp.loss.hidden.HiddenStates": {"distance": "mse", "layers": "even", "projection": False},
    "slimexp.loss.kl.ForwardKl": {"scale_by_temperature": True},
}
# Groups, and the keys of a stage that they fill.
GROUPS = {"scheduler": "lr_scheduler", "target": "budget"}
# Keys of the root of a run.
ROOT = {"compile": "trainer.compile"}
# Options of a group.
OPTIONS = {("stopper", "halving"): "asha"}


def class_path(path: str) -> str:
    """The present dotted path of a class; what was never renamed comes back as it is."""
    return CLASSES.get(path, path)


def later(path: object) -> Mapping[str, Any]:
    """Options that a class, by its present path, got later -> what it did before it had them."""
    return LATER.get(path, {}) if isinstance(path, str) else {}


def config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with present names: of ``_target_``s at any depth, of root keys and of those of its stages.

    Options that a class got later have the value of what it did before. A key that is there under its present
    name as well stays as it is.
    """
    present = _classes(tree)
    for old, new in ROOT.items():
        group, _, name = new.partition(".")
        if old in present and isinstance(present.get(group), dict):
            present[group].setdefault(name, present.pop(old))
    if isinstance(stages := present.get("pipeline"), dict):
        present["pipeline"] = {name: _stage(stage) for name, stage in stages.items()}
    return present


def key(path: str) -> str:
    """A dotted key with present names: ``pipeline.prune.scheduler.name`` -> ``pipeline.prune.lr_scheduler.name``.

    Of ``group@place`` both have theirs.
    """
    group, at, place = path.partition("@")
    if at:
        return f"{GROUPS.get(group, group)}@{key(place)}"
    if path in ROOT:
        return ROOT[path]
    parts = path.split(".")
    if len(parts) > 2 and parts[0] == "pipeline":
        parts[2] = GROUPS.get(parts[2], parts[2])
    return ".".join(parts)


def _classes(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        present = {
            name: class_path(value) if name == "_target_" and isinstance(value, str) else _classes(value)
            for name, value in tree.items()
        }
        return present | {name: value for name, value in later(present.get("_target_")).items() if name not in present}
    return [_classes(value) for value in tree] if isinstance(tree, list) else tree


def _stage(stage: Any) -> Any:
    if not isinstance(stage, dict):
        return stage
    present = {name: GROUPS[name] for name in stage if name in GROUPS and GROUPS[name] not in stage}
    return {present.get(name, name): value for name, value in stage.items()}
