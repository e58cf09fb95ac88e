"""The end of a run in a table: quality, size and speed of every stage beside the dense model."""

from collections.abc import Mapping, Sequence

from slimexp.record.figures import NOISY

DENSE = "_dense"  # at the end of a figure's name: of the dense model, timed in turns with the other

# Figures of a summary after the headline, in order: name -> how it is shown.
_QUALITY = {"perplexity": ".2f"}
_SIZE = {"disk_mb": ".2f"}
# Figure of speed -> its ratio to the dense model over pairs of requests, as reports have it, the unit, and how it is
# shown. Stages are timed minutes apart, under whatever load there is: the ratio is what they can be compared by.
_SPEED = {
    "latency_p50_ms": ("latency_ratio", "ms", ".2f"),
    "decode_tokens_per_s": ("decode_ratio", "tokens/s", ".0f"),
}
_HEADS = {"latency_p50_ms": "latency x dense", "decode_tokens_per_s": "decoding speed x dense"}


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
    shown = {name: form for name, form in ({headline: ".4f"} | _QUALITY | _SIZE).items() if name in last}
    speeds = [name for name in _SPEED if name in last]
    rows = [["", *shown, *(_HEADS[name] for name in speeds)]]
    rows += [
        [
            name,
            *(_cell(metrics, dense, *item) for item in shown.items()),
            *(_speed(metrics, dense, figure) for figure in speeds),
        ]
        for name, metrics in stages
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, f"  {NOISY}"] if any(_is_noisy(metrics) for _, metrics in stages) and speeds else lines


def _cell(metrics: Mapping[str, float], dense: Mapping[str, float], name: str, form: str) -> str:
    """A figure, and its ratio to that of the dense model."""
    if (value := metrics.get(name)) is None:
        return "-"
    reference = dense.get(name)
    ratio = f" ({fixed(value / reference, '.2f')}x)" if reference and metrics is not dense else ""
    return f"{fixed(value, form)}{ratio}"


def fixed(value: float, form: str) -> str:
    """A number in a format of so many decimals; from a million on (a ruined model's perplexity) in three digits."""
    return f"{value:{form}}" if abs(value) < 1e6 else f"{value:.3g}"


def _speed(metrics: Mapping[str, float], dense: Mapping[str, float], name: str) -> str:
    """``0.49x (1573.30 of 3210.82 ms)``: the ratio over pairs, and the medians of both in the same minute."""
    if (value := metrics.get(name)) is None:
        return "-"
    paired, unit, form = _SPEED[name]
    mark = " ~" if _is_noisy(metrics) else ""
    if metrics is dense or (ratio := metrics.get(paired)) is None:
        return f"{value:{form}} {unit}{mark}"
    beside = metrics.get(f"{name}{DENSE}")
    medians = f"{value:{form}} {unit}" if beside is None else f"{value:{form}} beside {beside:{form}} {unit}"
    return f"{ratio:.2f}x{mark} ({medians})"


def _is_noisy(metrics: Mapping[str, float]) -> bool:
    return metrics.get("latency_noisy", 0.0) > 0
