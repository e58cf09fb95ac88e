"""Figures that models are compared by: what was measured, and what follows from it and from the dense model."""

from collections.abc import Mapping

from slimexp.record.record import Record
from slimexp.record.schema import LARGEST, STDERR

OF_LAYER = "/"  # metric/layer: a figure of one layer, which models are not compared by


def retention(record: Record) -> float | None:
    """Chance-corrected retention: the share of the dense model's gain over the trivial guess that is kept.

    It is ``(trivial - x) / (trivial - dense)``: 1 for a model as good as the dense one, 0 for one that is no better
    than the trivial guess, above 1 for one that is better than dense. ``None`` where a headline is missing or the dense
    model is no better than the guess. Reports name it ``kept``.
    """
    value, dense = record.metrics.get(record.headline), record.baseline.get(record.headline)
    if value is None or dense is None:
        return None
    gain = record.trivial - dense
    gains = gain > 0 if record.direction == "min" else gain < 0
    return (record.trivial - value) / gain if gains else None


def figures(record: Record) -> dict[str, float]:
    """Metrics of the whole model, with those that follow from them.

    They are ``kept`` (see ``retention``) with its standard error, ``size_ratio`` (bytes on disk / those of the dense
    model), ``sparsity`` (share of zeros) and ``bits_per_weight``, each where its parts were measured.
    """
    values = {name: value for name, value in record.metrics.items() if OF_LAYER not in name}
    if (share := retention(record)) is not None:
        values["kept"] = share
        if (error := values.get(record.headline + STDERR)) is not None:
            values["kept" + STDERR] = error / abs(record.trivial - record.baseline[record.headline])
    if "disk_mb" in values and record.baseline.get("disk_mb"):
        values["size_ratio"] = values["disk_mb"] / record.baseline["disk_mb"]
    if values.get("params_live"):
        if "params_nonzero" in values:
            values.setdefault("sparsity", 1 - values["params_nonzero"] / values["params_live"])
        if "weights_mb" in values:
            values.setdefault("bits_per_weight", 8e6 * values["weights_mb"] / values["params_live"])
    return {name: value for name, value in values.items() if abs(value) <= LARGEST}  # not a ratio to next to nothing


def unshrunk(figures: Mapping[str, float]) -> bool:
    """Whether the zeros of a model make it no smaller: over 1 % are zero, but it has over 99.5 % of the dense bytes.

    Args:
        figures: Metric -> value, see ``figures``.
    """
    return figures.get("sparsity", 0.0) > 0.01 and figures.get("size_ratio", 0.0) > 0.995
