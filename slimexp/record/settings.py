"""Settings of a configuration: its leaves by dotted name, without the seed of the run."""

from collections.abc import Iterator, Mapping
from typing import Any


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each leaf of a nested configuration; items of a list are named by their index."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield prefix, tree
        return
    for key, value in items:
        yield from flat(value, f"{prefix}.{key}" if prefix else str(key))


def unseeded(node: Mapping[str, Any]) -> dict[str, Any]:
    """A corpus or technique without the run's seed; seeds further down, which choose rows or scores, are settings."""
    return {key: value for key, value in node.items() if key != "seed"}
