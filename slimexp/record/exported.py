"""Figures that an export adds to the record of the model, each under the name of its format: ``onnx_forward_ms``.

They are of the engine that reads the format, and of the machine, and as many threads, that the export was made on.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from slimexp.record import figures
from slimexp.record.schema import STDERR

TITLES: Mapping[str, str] = {
    "forward_ms": "forward pass (ms)",
    "tokens_per_s": "greedy decoding (tokens/s)",
    "disk_mb": "size on disk (MB)",
    "logit_gap": "largest difference of a logit from PyTorch, in standard deviations",
    "logit_gap_as_run": "largest difference of a logit as it is run, in standard deviations",
    "forward_ratio": "forward pass, as a multiple of PyTorch's time",
    "tokens_ratio": "greedy decoding, as a multiple of PyTorch's tokens/s",
    "forward_ms_pytorch": "forward pass of PyTorch beside it (ms)",
    "tokens_per_s_pytorch": "greedy decoding of PyTorch beside it (tokens/s)",
}
_MORE_IS_BETTER = frozenset({"tokens_per_s", "tokens_ratio", "tokens_per_s_pytorch"})
DIRECTIONS: Mapping[str, Literal["min", "max"]] = {name: "max" if name in _MORE_IS_BETTER else "min" for name in TITLES}
THREADS = "threads"
CONDITIONS = ("prompt_tokens", "new_tokens", THREADS)  # what times are stated for
SPEEDS = ("tokens_per_s", "forward_ms")  # what users of an engine wait for: of one that writes answers the first


class Exported(NamedTuple):
    """What the name of a metric says, where it is of an export.

    Attributes:
        format: Name of the format.
        figure: A key of ``TITLES``, or one of ``CONDITIONS``.
    """

    format: str
    figure: str

    @property
    def title(self) -> str:
        """Its words: ``onnx forward pass (ms)``."""
        return f"{self.format} {TITLES.get(self.figure, self.figure.replace('_', ' '))}"


def exported(metrics: Iterable[str]) -> dict[str, Exported]:
    """Those of the metrics that are of exports.

    Args:
        metrics: Names of all metrics of a record, or of several. Every export says how far its logits differ, and a
            format is known by that: ``decode_tokens_per_s`` of a measure is of none.
    """
    names = set(metrics)
    formats = [name.removesuffix("_logit_gap") for name in sorted(names) if name.endswith("_logit_gap")]
    every = [Exported(name, figure) for name in formats for figure in (*TITLES, *CONDITIONS)]
    return {metric: one for one in every if (metric := f"{one.format}_{one.figure}") in names}


def way_to(metric: str) -> str:
    """How a metric that no record has gets there, where a measure or an export gives it; empty for any other."""
    if way := figures.way_to(metric):
        return way
    of = [metric.removesuffix(f"_{figure}") for figure in TITLES if metric.endswith(f"_{figure}")]
    return f"; an export gives it: python -m slimexp.export ARTIFACT format={min(of, key=len)}" if of else ""


def absent(metric: str, measured: Iterable[str], near: str | None = None) -> str:
    """The message on a metric that no record has, with the way to it.

    Args:
        metric: The metric.
        measured: Those that some record has; errors and ends of intervals are not listed.
        near: What may be meant, as it is typed.
    """
    hint = f"{way};" if (way := way_to(metric)) else f"; did you mean '{near}'?" if near else ";"
    shown = [name for name in measured if STDERR not in name and not name.endswith(("_low", "_high"))]
    return f"no record has the metric '{metric}'{hint} there are {', '.join(shown)}"


def speeds(metrics: Iterable[str]) -> list[str]:
    """Of each format that was timed the figure that its users wait for, see ``SPEEDS``."""
    names = list(metrics)
    formats = dict.fromkeys(one.format for one in exported(names).values())
    of_each = [[f"{name}_{figure}" for figure in SPEEDS if f"{name}_{figure}" in names] for name in formats]
    return [found[0] for found in of_each if found]
