"""The style that plot, page and tables share: names, digits, colours and markers."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from slimexp.analysis.point import Point, Spread
from slimexp.analysis.section import Section
from slimexp.record.exported import Exported
from slimexp.record.figures import BITS_PER_BYTE, KEPT, PERPLEXITY
from slimexp.record.schema import DIFFERENCE, MINUS_ARM, NO_TEACHER, NO_TRAINING

NAMES = {
    "cer": "character error rate",
    "wer": "word error rate",
    "exact_match": "exact match",
    "perplexity": "perplexity per token",
    "bits_per_byte": "bits per byte",
    "perplexity_ratio": "perplexity, as a multiple of dense",
    "bits_per_byte_ratio": "bits per byte, as a multiple of dense",
    "disk_mb": "size on disk (MB)",
    "weights_mb": "weights on disk (MB)",
    "resident_mb": "weights in memory (MB)",
    "peak_mb": "peak memory (MB)",
    "params_live": "parameters",
    "latency_p50_ms": "latency, median (ms)",
    "latency_ratio": "latency, as a multiple of dense",
    "size_ratio": "size on disk, as a multiple of dense",
    "bits_per_weight": "stored bits per weight",
    "kept": "share of the dense model's gain kept",
}
# End of the name of a paired difference -> what the figure is less, in few words and in more
DIFFERENCES = {
    DIFFERENCE: ("dense", "that of the dense model"),
    MINUS_ARM[NO_TEACHER]: ("no teacher", "that of the same student trained without its teacher"),
    MINUS_ARM[NO_TRAINING]: ("no training", "that of the same student before training"),
}
# Okabe & Ito 2008: distinct under every common colour blindness. Red is reserved for a loss of speed.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7A5C00")
MARKERS = ("o", "s", "^", "D", "v", "P")
SLOWER = "#D3222A"  # than the dense model
GREY = "#C9C9C9"  # dominated
REFERENCE = "#555555"  # the trivial guess, and published points
LOG_FROM = 12.0  # largest / smallest value from which a cost or an error has a logarithmic axis
WORD = 60  # characters of a title, and of a name within a plot


def title_of(metric: str, exports: Mapping[str, Exported]) -> str:
    """Words for a metric.

    Args:
        metric: Its name.
        exports: Those of exports, see ``record.exported``.
    """
    if metric in exports:
        return exports[metric].title
    if (end := difference_of(metric)) is not None:
        return f"{title_of(metric.removesuffix(end), exports)} minus {DIFFERENCES[end][1]}"
    return NAMES.get(metric, metric.replace("_", " "))


def difference_of(metric: str) -> str | None:
    """The end of the name of a paired difference, which says what it is from; ``None`` for any other metric."""
    return next((end for end in DIFFERENCES if metric.endswith(end)), None)


def kind_of(point: Point) -> str:
    """The chain of a point as text; points of one chain share a colour and a marker."""
    return " → ".join(point.chain)


def kinds_of(section: Section) -> list[str]:
    """Chains of a section, in the order in which colours and markers are assigned."""
    return list(dict.fromkeys(kind_of(point) for point in section.points if not point.dense))


def colour_and_marker(kind: str, kinds: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a chain; either distinguishes the first six, and the two together up to 36."""
    place = kinds.index(kind)
    return COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def error_bar(spread: Spread) -> tuple[float, float]:
    """Ends of an error bar: the range over seeds, or for one seed one standard error to each side, if it is known."""
    if spread.seeds > 1 or not spread.error:
        return spread.low, spread.high
    return spread.mean - spread.error, spread.mean + spread.error


def words_on_quality(section: Section) -> Iterator[str]:
    """What a reader must know of the headline and of the figure beside the dense model, a sentence for each."""
    if section.headline == PERPLEXITY and section.quality != KEPT:
        yield (
            "perplexity is per token, and compares these models, whose tokens are the same; "
            "across tokenizers bits_per_byte compares"
        )
    elif section.headline == BITS_PER_BYTE and any(PERPLEXITY in point.figures for point in section.points):
        yield "these models split text into different tokens, and a perplexity is per token, so bits_per_byte leads"
    if section.untrained and section.quality == KEPT:
        value = ", ".join(number(point.value(section.headline)) for point in section.points if point.dense)
        guess = f" ({value} beside {number(section.guess)})" if section.guess is not None else ""
        yield (
            f"dense is untrained: in {section.headline} it is no better than the best guess without a model{guess}, "
            "so there is no gain of which a share could be kept"
        )


def shortened(text: str, most: int = WORD) -> str:
    """The text, cut to at most ``most`` characters and an ellipsis."""
    return text if len(text) <= most else f"{text[:most]}…"


def rank(section: Section, index: int) -> int:
    """Number of a front point in plot, list and page: from 1 on along x, without dense models."""
    return 1 + [member for member in section.front if not section.points[member].dense].index(index)


def number(value: float) -> str:
    """A value with three significant digits, as ``1.25M`` from a million on, ``1.25e+12`` from 10^12; empty for NaN."""
    if np.isnan(value):
        return ""
    if abs(value) >= 1e12:
        return f"{value:.3g}"
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
