"""Figures of single layers for the page: sensitivity to pruning, and the bits of the weights with their costs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import Section
from slimexp.record.record import Record

_SENSITIVITY = "sensitivity_nats"
_BITS = "bits"
_ROUNDED = re.compile(r"rounded_to_(\d+)_nats")  # growth of the loss when the layer alone has weights of that width
# Descriptions for records without the settings of the measure:
_SENSITIVITY_OF_ANY = "Growth of the loss when weights of the layer are set to zero; nothing is trained."
_BITS_OF_ANY = "Bits that the weights of each layer got."
_DIGITS = 4  # significant ones; there may be hundreds of layers

Figures = list[list[float] | None]


def layers(section: Section) -> list[str]:
    """Layers of which a point of the section has a figure, in the order of the model that has most of them."""
    measured = (list(figures) for point in section.points for name, figures in point.layers.items() if _is_shown(name))
    return list(dict.fromkeys(layer for names in sorted(measured, key=len, reverse=True) for layer in names))


def sensitivity(point: Point, names: Sequence[str], records: Mapping[str, Record]) -> dict[str, Any] | None:
    """Sensitivity of each layer of a point, and how it was measured; ``None`` where it was not.

    Args:
        point: A point of a section.
        names: The layers.
        records: Records by key.
    """
    figures = point.layers.get(_SENSITIVITY)
    if figures is None:
        return None
    measures = [(records[key].config.get("measure") or {}).get("sensitivity") for key in point.keys if key in records]
    return {
        "figures": _figures(figures, names),
        "how": next((_how(measure) for measure in measures if measure), _SENSITIVITY_OF_ANY),
    }


def bits(point: Point, names: Sequence[str], records: Mapping[str, Record]) -> dict[str, Any] | None:
    """Bits of each layer's weights, and the cost of other widths; ``None`` where all layers have the same.

    Args:
        point: A point of a section.
        names: The layers.
        records: Records by key.
    """
    widths = point.layers.get(_BITS)
    if widths is None:
        return None
    scans = {match[1]: figures for name, figures in point.layers.items() if (match := _ROUNDED.fullmatch(name))}
    stages = [stage for key in point.keys if key in records for stage in _stages(records[key]) if _allocated(stage)]
    return {
        "figures": _figures(widths, names),
        "growth": {width: _figures(figures, names) for width, figures in scans.items()},
        "how": next(map(_how_bits, stages), _BITS_OF_ANY),
    }


def _is_shown(name: str) -> bool:
    return name in (_SENSITIVITY, _BITS)


def _figures(figures: Mapping[str, Spread], names: Sequence[str]) -> Figures:
    return [_rounded(figures[name]) if name in figures else None for name in names]


def _rounded(spread: Spread) -> list[float]:
    ends = (spread.mean, spread.low, spread.high) if spread.low < spread.high else (spread.mean,)
    return [float(f"{end:.{_DIGITS}g}") for end in ends]


def _how(measure: Mapping[str, Any]) -> str:
    try:
        loss, importance = (str(measure[part]["_target_"]).rsplit(".", 1)[-1] for part in ("loss", "importance"))
        rows, share = measure["rows"], f"{100 * measure['sparsity']:g} %"
    except (KeyError, TypeError, ValueError):
        return _SENSITIVITY_OF_ANY
    return (
        f"Growth of {loss} on {rows} rows of validation text when {share} of the "
        f"layer's weights that are not zero yet (chosen by {importance}) are set to zero; nothing is trained."
    )


def _stages(record: Record) -> list[Mapping[str, Any]]:
    return [stage for stage in (record.config.get("pipeline") or {}).values() if stage]


def _allocated(stage: Mapping[str, Any]) -> bool:
    allocation = stage.get("allocation")
    return "bits" in stage and isinstance(allocation, dict) and isinstance(allocation.get("widths"), list)


def _how_bits(stage: Mapping[str, Any]) -> str:
    rows, widths = stage["allocation"].get("rows", "some"), ", ".join(map(str, stage["allocation"]["widths"]))
    return (
        f"Of {widths} bits, within the bytes of one width for all layers, so that the sum of the layers' costs is "
        "least. A cost is how far rounding that layer alone takes the model's answers from what they were: "
        f"nats per token, {rows} rows of training text."
    )
