"""The lineage of a record: the records of the stages before it, their names, and the settings of all of them."""

from collections.abc import Mapping
from typing import Any

from slimexp.record.record import Record
from slimexp.record.settings import flat, unseeded
from slimexp.record.stage import DENSE, shaping

SHARED = ("model", "trainer", "save_dtype")  # what shapes every stage of a run, beside the stages themselves
LONGEST = 100  # stages of a chain


def lineage(record: Record, parents: Mapping[str, Record]) -> list[Record]:
    """Records of the stages that led to ``record``, which is the last; at most ``LONGEST``, and none of them twice.

    Args:
        record: The last of them.
        parents: Records by key. A file of records may hold a circle of parents.
    """
    ancestors = {record.key: record}
    while (parent := parents.get(record.parent or "")) and parent.key not in ancestors and len(ancestors) < LONGEST:
        ancestors[parent.key] = record = parent
    return list(ancestors.values())[::-1]


def chain_of(record: Record, parents: Mapping[str, Record]) -> list[str]:
    """Names of the stages that led to ``record``; where a parent's record is missing, as its configuration orders them.

    The dense stage is left out unless it is the only one.
    """
    ancestors = lineage(record, parents)
    chain, first = [ancestor.stage for ancestor in ancestors], ancestors[0]
    if (
        first.parent is not None
        and first.parent not in parents
        and chain[0] in (planned := list(first.config.get("pipeline") or {}))
    ):
        chain = planned[: planned.index(chain[0])] + chain
    return [stage for stage in chain if stage != DENSE] or [DENSE]


def settings_of(record: Record, parents: Mapping[str, Record]) -> dict[str, Any]:
    """Flat settings that shaped ``record``: of the stages of its chain as ``stage.key``, and of the run."""
    pipeline = record.config.get("pipeline") or {}
    stages = {stage: unseeded(pipeline[stage]) for stage in chain_of(record, parents) if pipeline.get(stage)}
    shared = {name: record.config[name] for name in SHARED if name in record.config}
    if shared.get("trainer"):
        shared["trainer"] = shaping(shared["trainer"])
    return dict(flat({**shared, **stages}))
