"""What the page shows of single layers: how much each minds being pruned, how many bits its weights got and why."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import Section
from slimexp.record.record import Record

_SENSITIVITY = "sensitivity_nats"
_BITS = "bits"
_ROUNDED = re.compile(r"rounded_to_(\d+)_nats")  # of a scan: what the layer alone would cost at that width
# Settings are lost:
_ANYHOW = "Growth of the loss when weights of the layer are set to zero; nothing is trained."
_BITS_ANYHOW = "Bits that the weights of each layer got."
_DIGITS = 4  # significant; there may be hundreds of layers

Figures = list[list[float] | None]


def layers(section: Section) -> list[str]:
    """Layers of which a point of the section holds a figure, as the model that has most of them is laid out."""
    held = (list(figures) for point in section.points for name, figures in point.layers.items() if _is_shown(name))
    return list(dict.fromkeys(layer for names in sorted(held, key=len, reverse=True) for layer in names))


def sensitivity(point: Point, names: Sequence[str], records: Mapping[str, Record]) -> dict[str, Any] | None:
    """What a point holds of each layer's sensitivity, and how it was measured; ``None`` where it was not."""
    held = point.layers.get(_SENSITIVITY)
    if held is None:
        return None
    asked = [(records[key].config.get("measure") or {}).get("sensitivity") for key in point.keys if key in records]
    return {"figures": _figures(held, names), "how": next((_how(measure) for measure in asked if measure), _ANYHOW)}


def bits(point: Point, names: Sequence[str], records: Mapping[str, Record]) -> dict[str, Any] | None:
    """The width of each layer's weights, and what each would cost; ``None`` where all layers got the same."""
    held = point.layers.get(_BITS)
    if held is None:
        return None
    scans = {found[1]: figures for name, figures in point.layers.items() if (found := _ROUNDED.fullmatch(name))}
    stages = [stage for key in point.keys if key in records for stage in _stages(records[key]) if _allocated(stage)]
    return {
        "figures": _figures(held, names),
        "growth": {width: _figures(figures, names) for width, figures in scans.items()},
        "how": next(map(_how_bits, stages), _BITS_ANYHOW),
    }


def _is_shown(name: str) -> bool:
    return name in (_SENSITIVITY, _BITS)


def _figures(held: Mapping[str, Spread], names: Sequence[str]) -> Figures:
    return [_rounded(held[name]) if name in held else None for name in names]


def _rounded(spread: Spread) -> list[float]:
    ends = (spread.mean, spread.low, spread.high) if spread.low < spread.high else (spread.mean,)
    return [float(f"{end:.{_DIGITS}g}") for end in ends]


def _how(measure: Mapping[str, Any]) -> str:
    try:
        loss, importance = (str(measure[part]["_target_"]).rsplit(".", 1)[-1] for part in ("loss", "importance"))
        rows, share = measure["rows"], f"{100 * measure['sparsity']:g} %"
    except (KeyError, TypeError, ValueError):
        return _ANYHOW
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
