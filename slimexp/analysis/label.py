"""Labels of points: the chain of stages, with the settings in which records that have the same stage differ."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from slimexp.analysis.lineage import SHARED, chain_of, settings_of
from slimexp.host.console import printable
from slimexp.record.record import Record
from slimexp.record.stage import DENSE

# Settings that every technique has stand after those of the technique itself.
_LESS_TELLING = frozenset(
    {"steps", "batch_size", "dropout", "workers", "pad_to", "packing", "clip_norm", "optimizer", "lr_scheduler"}
)
_SHOWN = 4  # settings that a stage's label holds, where these are enough to distinguish it from all others

Settings = Mapping[str, Any]


def labels(records: Sequence[Record], parents: Mapping[str, Record]) -> list[str]:
    """A label for each record that distinguishes it from the others, as short as that allows.

    Args:
        records: One for each point.
        parents: Records by key, for the chains.
    """
    settings = [settings_of(record, parents) for record in records]
    chains = [chain_of(record, parents) for record in records]
    varying = _varying(settings, chains)

    def label(index: int, most: int | None) -> str:
        record, chain = records[index], chains[index]
        shown = {key: value for key, value in settings[index].items() if key in varying and value is not None}
        name = " → ".join(_stage_label(stage, shown, most) for stage in chain)
        common = ", ".join(_setting(key, value) for key, value in shown.items() if key.split(".")[0] in SHARED)
        prefix = f"{DENSE}: " if record.dense and chain != [DENSE] else ""
        return f"{prefix}{name}{f' [{common}]' if common else ''}"

    short = [label(index, _SHOWN) for index in range(len(records))]
    count = Counter(short)
    full = [label(index, None) if count[name] > 1 else name for index, name in enumerate(short)]
    count = Counter(full)
    return [
        printable(f"{name} [{record.name}]" if count[name] > 1 else name)
        for record, name in zip(records, full, strict=True)
    ]


def _varying(settings: Sequence[Settings], chains: Sequence[list[str]]) -> set[str]:
    """Keys in which records that have the same stages differ; numbers of a component, where they have it in common."""
    keys = {key for flat in settings for key in flat}

    def component(key: str) -> str:
        path = key.removesuffix("._target_")
        while (path := path.rpartition(".")[0]) and f"{path}._target_" not in keys:
            pass
        return f"{path}._target_"

    def varies(key: str) -> bool:
        owner = component(key)
        alike: dict[str, list[tuple[Settings, list[str]]]] = {}
        for flat, chain in zip(settings, chains, strict=True):
            alike.setdefault(str(flat.get(owner)), []).append((flat, chain))
        return any(_differ(key, group) for group in alike.values())

    return {key for key in keys if varies(key)}


def _differ(key: str, group: Sequence[tuple[Settings, list[str]]]) -> bool:
    """Whether two of the group have different values, or one has none though another with the same stages does."""
    chains = [chain for flat, chain in group if key in flat]
    partly = any(key not in flat and chain in chains for flat, chain in group)
    return partly or len({json.dumps(flat[key]) for flat, _ in group if key in flat}) > 1


def _stage_label(stage: str, settings: Settings, most: int | None) -> str:
    """``prune(sparsity=0.5)``, with at most so many settings."""
    own = [(key, value) for key, value in settings.items() if key.startswith(f"{stage}.")]
    own.sort(key=lambda pair: (pair[0].split(".")[1] in _LESS_TELLING, *_depth(pair[0])))
    parts = [_setting(key, value) for key, value in own]
    more = [f"+{len(parts) - most}"] if most is not None and len(parts) > most else []
    return f"{stage}({', '.join(parts[:most] + more)})" if parts else stage


def _depth(key: str) -> tuple[bool, int]:
    """Order of settings: components that were chosen, then options of the stage, then those of components."""
    return not key.endswith("._target_"), key.count(".")


def _setting(key: str, value: Any) -> str:
    """The last parts of a dotted name, with its value; of a class its name alone."""
    *path, last = key.split(".")
    if last == "_target_":
        return str(value).rsplit(".", 1)[-1]
    within = [path[-1]] if len(path) > 1 or path[:1] == ["model"] else []
    return f"{'.'.join([*within, last])}={f'{value:g}' if isinstance(value, float) else value}"
