"""Changes between the sweep that is stored in a folder and one that is requested for the same folder."""

import json
from collections.abc import Mapping
from typing import Any

from slimexp.config import renamed

CONTENT, FIXED = "what is not swept", "fixed"  # keys of a description: a digest of what is fixed, and the same by key
_BEFORE: dict[str, Any] = {"packing": False}  # option that stages got later -> what they did without it
_LIGHTNING = "pytorch_lightning.Trainer"  # trainer of earlier versions, which had none of slimexp's own options
_LATER = tuple(f"trainer.{key}" for key in ("cuda_graphs", "rows_at_once"))  # which change results by rounding alone
_CHOICES = (
    *(f"trainer.{key}" for key in ("_target_", "attention", "compile", "pad_to", "fused", "logits_at_once")), *_LATER,
)  # fmt: skip
_DEVICES = ("trainer.devices", "trainer.num_nodes", "trainer.strategy")  # results do not depend on them
_LISTED = 4  # fixed keys that are named where more differ


def changes(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """Differences between two descriptions of sweeps: ``pipeline.prune.sparsity was 0.25,0.5 and is 0.25,0.75``."""
    present = _present(stored, requested.get(FIXED) or {})
    differing = [key for key in {**present, **requested} if key != FIXED and _differ(present, requested, key)]
    if differing == [CONTENT] and present.get(FIXED):
        if fixed := _fixed_changes(present[FIXED], requested[FIXED]):
            return fixed
        if present is not stored:  # the digest is of names that have changed since
            return ""
    swept = [key for key in differing if key != CONTENT]  # other first values make another digest
    named = [_change(key, present, requested) for key in swept]
    return ", ".join(named) or ", ".join(f"{key} changed" for key in differing)


def _present(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> Mapping[str, Any]:
    """``stored`` itself, or a copy as this version would have written it.

    With present names where an earlier version wrote other ones; with what a stage or class did before it had an
    option; and with the requested number of loader processes, on which no result depends, and choices of slimexp's own
    trainer; without devices.
    """
    translated = {renamed.key(key): value for key, value in stored.items()}
    fixed = {
        renamed.key(key): renamed.class_path(value) if key.endswith("_target_") else value
        for key, value in (stored.get(FIXED) or {}).items()
        if key not in _DEVICES
    }
    if fixed.get("trainer._target_") == _LIGHTNING:
        fixed |= {key: requested[key] for key in requested if key.startswith(_CHOICES)}
    elif fixed:
        fixed = {key: requested[key] for key in _LATER if key in requested} | fixed
    for key in [key for key in requested if key.startswith("pipeline.") and key.count(".") == 2] if fixed else ():
        stage, _, option = key.rpartition(".")
        if option == "workers" and key in fixed:
            fixed[key] = requested[key]
        elif option == "pad_to" and requested[key] is None and fixed.get(key) == requested.get("trainer.pad_to"):
            fixed[key] = None  # the trainer's, which is the same
        elif option in _BEFORE and f"{stage}._target_" in fixed:
            fixed.setdefault(key, _BEFORE[option])
    for key in requested if fixed else ():
        place, _, option = key.rpartition(".")
        if option in (before := renamed.later(fixed.get(f"{place}._target_"))):
            fixed.setdefault(key, before[option])
    if fixed:
        translated[FIXED] = fixed
    return stored if translated == stored else translated


def _fixed_changes(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """Changes of the first few keys that differ; empty where an older slimexp stored no such keys."""
    keys = [key for key in {**stored, **requested} if _differ(stored, requested, key)] if stored else []
    more = [f"and {len(keys) - _LISTED} more"] if len(keys) > _LISTED else []
    return ", ".join([*(_change(key, stored, requested) for key in keys[:_LISTED]), *more])


def _change(key: str, stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    if key in stored and key in requested:
        return f"{key} was {_readable(stored[key])} and is {_readable(requested[key])}"
    return f"{key} is new" if key in requested else f"{key} is no longer there"


def _differ(stored: Mapping[str, Any], requested: Mapping[str, Any], key: str) -> bool:
    """Whether an item differs; its order counts, as values of a trial stand in that of the objectives."""
    return json.dumps(stored.get(key)) != json.dumps(requested.get(key))


def _readable(value: Any) -> str:
    """A value, or the JSON of a distribution, as it is typed."""
    try:
        distribution = json.loads(value)
        attributes = distribution["attributes"]
    except (TypeError, KeyError, ValueError):
        return json.dumps(value).replace('"', "")
    if "choices" in attributes:
        return ",".join(map(str, attributes["choices"]))
    interval = f"interval({attributes['low']:g}, {attributes['high']:g})"
    typed = f"int({interval})" if distribution["name"] == "IntDistribution" else interval
    return f"tag(log, {typed})" if attributes["log"] else typed
