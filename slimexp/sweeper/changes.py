"""What has changed between a sweep that is written down and one that is asked for at the same place."""

import json
from collections.abc import Mapping
from typing import Any

from slimexp.config import renamed

CONTENT, FIXED = "what is not swept", "fixed"  # of what describes a sweep: a digest, and by key
_TOLD = 4  # fixed keys that are named where more differ


def changes(written: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """What differs, in words: ``pipeline.prune.sparsity was 0.25,0.5 and is 0.25,0.75``."""
    theirs = _present(written)
    differing = [key for key in {**theirs, **mine} if key != FIXED and _text(theirs, key) != _text(mine, key)]
    if differing == [CONTENT] and theirs.get(FIXED):
        if fixed := _fixed_changes(theirs[FIXED], mine[FIXED]):
            return fixed
        if theirs is not written:  # the digest is of names that have changed since
            return ""
    swept = [key for key in differing if key != CONTENT]  # other first values make another digest
    return ", ".join(_change(key, theirs, mine) for key in swept) or ", ".join(f"{key} changed" for key in differing)


def _present(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """``described`` itself, or a copy with present names where an earlier version wrote other ones."""
    found = {renamed.key(key): value for key, value in described.items()}
    fixed = {
        renamed.key(key): renamed.class_path(value) if key.endswith("_target_") else value
        for key, value in (described.get(FIXED) or {}).items()
    }
    if fixed:
        found[FIXED] = fixed
    return described if found == described else found


def _fixed_changes(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Of the first few keys that differ; nothing where an older slimexp did not write them down."""
    keys = [key for key in {**theirs, **mine} if _text(theirs, key) != _text(mine, key)] if theirs else []
    more = [f"and {len(keys) - _TOLD} more"] if len(keys) > _TOLD else []
    return ", ".join([*(_change(key, theirs, mine) for key in keys[:_TOLD]), *more])


def _change(key: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    if key in theirs and key in mine:
        return f"{key} was {_readable(theirs[key])} and is {_readable(mine[key])}"
    return f"{key} is new" if key in mine else f"{key} is no longer there"


def _text(described: Mapping[str, Any], key: str) -> str:
    """Of one item; its order counts, as values of a trial stand in that of the objectives."""
    return json.dumps(described.get(key))


def _readable(value: Any) -> str:
    """A value, or the JSON of a distribution, as it is typed."""
    try:
        form = json.loads(value)
        told = form["attributes"]
    except (TypeError, KeyError, ValueError):
        return json.dumps(value).replace('"', "")
    if "choices" in told:
        return ",".join(map(str, told["choices"]))
    interval = f"interval({told['low']:g}, {told['high']:g})"
    typed = f"int({interval})" if form["name"] == "IntDistribution" else interval
    return f"tag(log, {typed})" if told["log"] else typed
