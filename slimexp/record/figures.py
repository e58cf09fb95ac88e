"""Figures of one record: its metrics, and what follows from them beside the dense model."""

from collections.abc import Mapping

from slimexp.record.record import OF_LAYER, Record, kept
from slimexp.record.schema import LARGEST

STDERR = "_stderr"  # as lm-evaluation-harness names it


def figures(record: Record) -> dict[str, float]:
    """Metrics of the model, and ``kept``, ``size_ratio``, ``sparsity`` and ``bits_per_weight`` where they follow."""
    found = {name: value for name, value in record.metrics.items() if OF_LAYER not in name}
    if (share := kept(record)) is not None:
        found["kept"] = share
        if (error := found.get(record.headline + STDERR)) is not None:
            found["kept" + STDERR] = error / abs(record.trivial - record.baseline[record.headline])
    if "disk_mb" in found and record.baseline.get("disk_mb"):
        found["size_ratio"] = found["disk_mb"] / record.baseline["disk_mb"]
    if found.get("params_live"):
        if "params_nonzero" in found:
            found.setdefault("sparsity", 1 - found["params_nonzero"] / found["params_live"])
        if "weights_mb" in found:
            found.setdefault("bits_per_weight", 8e6 * found["weights_mb"] / found["params_live"])
    return {name: value for name, value in found.items() if abs(value) <= LARGEST}  # a ratio to next to nothing is none


def unshrunk(found: Mapping[str, float]) -> bool:
    """Whether zeros make a model no smaller: it has them, but takes the bytes of the dense one (to half a per cent).

    Args:
        found: See ``figures``.
    """
    return found.get("sparsity", 0.0) > 0.01 and found.get("size_ratio", 0.0) > 0.995
