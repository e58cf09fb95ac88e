"""The end of a run in a table: quality, size and speed of every stage beside the dense model."""

from collections.abc import Mapping, Sequence

DENSE = "_dense"  # at the end of a figure's name: of the dense model, timed in turns with the other

# Figures of a summary after the headline, in order: name -> how it is shown. Speed is one column, the first there is.
_QUALITY = {"perplexity": ".2f"}
_SIZE = {"disk_mb": ".2f"}
_SPEED = {"decode_tokens_per_s": ".0f", "latency_p50_ms": ".2f"}


def summary(stages: Sequence[tuple[str, Mapping[str, float]]], *, headline: str) -> list[str]:
    """Lines of a table, one per stage; none where there is nothing to compare.

    Args:
        stages: Name and metrics of each measured stage, the dense model first.
        headline: Name of the metric that is the quality.
    """
    if len(stages) < 2:
        return []
    _, dense = stages[0]
    last = stages[-1][1]
    speed = next(({name: form} for name, form in _SPEED.items() if name in last), {})
    shown = {name: form for name, form in ({headline: ".4f"} | _QUALITY | _SIZE | speed).items() if name in last}
    rows = [["", *shown]]
    rows += [[name, *(_cell(metrics, dense, *item) for item in shown.items())] for name, metrics in stages]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(metrics: Mapping[str, float], dense: Mapping[str, float], name: str, form: str) -> str:
    """A figure, and its ratio to that of the dense model, which was timed in the same minute."""
    if (value := metrics.get(name)) is None:
        return "-"
    reference = metrics.get(f"{name}{DENSE}", dense.get(name))
    ratio = f" ({value / reference:.2f}x)" if reference and metrics is not dense else ""
    return f"{value:{form}}{ratio}"
