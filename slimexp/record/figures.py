"""Figures that models are compared by: what was measured, and what follows from it and from the dense model.

Quality beside the dense model has one of three figures. For language models it is the ratio of perplexities, where both
models split the text into the same tokens, and otherwise the ratio of bits per byte, because a perplexity is one per
token. For other tasks, where guessing is a real baseline, it is the retention above the best guess.
"""

import math
from collections.abc import Mapping, Sequence

from slimexp.record.record import Record
from slimexp.record.schema import LARGEST, STDERR

OF_LAYER = "/"  # metric/layer: a figure of one layer, which models are not compared by
PERPLEXITY, BITS_PER_BYTE, RATIO, KEPT = "perplexity", "bits_per_byte", "_ratio", "kept"
NOISY = (
    "~ latency is noisy: other processes took the cores, or the dense model's own times spread"  # where it is marked
)
_TIMED = ("latency_p50_ms", "latency_p95_ms", "latency_ratio", "prefill_tokens_per_s", "decode_tokens_per_s")
MEASURES: Mapping[str, Sequence[str]] = {  # measure that a run has only where it is asked for -> its figures
    "latency": (*_TIMED, "prefill_ratio", "decode_ratio"),
    "memory": ("peak_mb", "cache_bytes_per_token"),
    "flops": ("flops_prefill_g", "flops_decode_g"),
}
_SAME_TOKENS = 1e-9  # relative difference of the tokens per byte of two models, which only rounding explains
_SURE = 2.0  # standard errors of the dense headline by which it must be better than the best guess


def way_to(metric: str) -> str:
    """How a metric that no record has gets there, where a measure gives it; empty for any other."""
    of = next((measure for measure, figures in MEASURES.items() if metric in figures), None)
    return f"; the measure {of} gives it: train or evaluate with 'measure=[size,task,{of}]'" if of else ""


def leading(headline: str, rows: Sequence[Mapping[str, float]]) -> str:
    """The metric that leads in reports: perplexity for language models of the same tokens, else the headline.

    Args:
        headline: The headline of the corpus.
        rows: Metrics of the models that are shown together.
    """
    if headline != BITS_PER_BYTE:
        return headline
    graded = [row for row in rows if headline in row]
    return PERPLEXITY if graded and same_tokens(graded) else headline


def compared_by(headline: str, leads: str) -> str:
    """The figure that says how near a model is to the dense one.

    Args:
        headline: The headline of the corpus.
        leads: The metric that stands for quality, see ``leading``.
    """
    return f"{leads}{RATIO}" if headline == BITS_PER_BYTE else KEPT


def same_tokens(rows: Sequence[Mapping[str, float]]) -> bool:
    """Whether language models split the text that they are graded on into as many tokens, so that perplexities compare.

    Tokens per byte follow from perplexity and bits per byte; a row without both is not known to have the same.
    """
    shares = [_tokens_per_byte(row) for row in rows]
    known = [share for share in shares if share is not None]
    return len(known) == len(rows) and max(known, default=0.0) <= min(known, default=0.0) * (1 + _SAME_TOKENS)


def guess_in(leads: str, record: Record) -> float | None:
    """The best guess of a record as a figure of the metric ``leads``; ``None`` where its model was not graded."""
    if leads == record.headline:
        return record.trivial
    share = _tokens_per_byte(record.metrics)
    return None if share is None else math.exp(min(record.trivial * math.log(2) / share, math.log(LARGEST)))


def untrained(record: Record) -> bool:
    """Whether the dense model is no better than the best guess without a model, within two standard errors."""
    dense = record.baseline.get(record.headline)
    if dense is None:
        return False
    gain = record.trivial - dense if record.direction == "min" else dense - record.trivial
    return gain <= _SURE * record.baseline.get(record.headline + STDERR, 0.0)


def _tokens_per_byte(row: Mapping[str, float]) -> float | None:
    """Tokens per byte of the graded text; ``None`` where it cannot be derived."""
    perplexity, bits = row.get(PERPLEXITY, 0.0), row.get(BITS_PER_BYTE, 0.0)
    return bits * math.log(2) / math.log(perplexity) if perplexity > 1 and bits > 0 else None


def retention(record: Record) -> float | None:
    """Chance-corrected retention: the share of the dense model's gain over the trivial guess that is kept.

    It is ``(trivial - x) / (trivial - dense)``: 1 for a model as good as the dense one, 0 for one that is no better
    than the trivial guess, above 1 for one that is better than dense. ``None`` where a headline is missing or the dense
    model is ``untrained``, of whose gain there is nothing to keep. Reports name it ``kept``, and show it where guessing
    is a real baseline: for language models, which gain so much over guessing bytes that any of them keeps nearly all
    of it, they show ratios of perplexity.
    """
    value, dense = record.metrics.get(record.headline), record.baseline.get(record.headline)
    if value is None or dense is None or untrained(record):
        return None
    return (record.trivial - value) / (record.trivial - dense)


def _likelihood_ratios(record: Record) -> dict[str, float]:
    """Perplexity and bits per byte as a multiple of the dense model's, of a language model, with standard errors."""
    if record.headline != BITS_PER_BYTE:
        return {}
    row, dense = record.metrics, record.baseline
    ratios = {}
    for metric in (PERPLEXITY, BITS_PER_BYTE) if same_tokens([row, dense]) else (BITS_PER_BYTE,):
        if row.get(metric, 0.0) > 0 and dense.get(metric, 0.0) > 0:
            ratios[f"{metric}{RATIO}"] = row[metric] / dense[metric]
            if (error := row.get(metric + STDERR)) is not None:
                ratios[f"{metric}{RATIO}{STDERR}"] = error / dense[metric]
    return ratios


def figures(record: Record) -> dict[str, float]:
    """Metrics of the whole model, with those that follow from them.

    They are ``kept`` (see ``retention``), ``perplexity_ratio`` and ``bits_per_byte_ratio`` (of language models, as a
    multiple of the dense model's), these with their standard errors, ``size_ratio`` (bytes on disk / those of the dense
    model), ``sparsity`` (share of zeros) and ``bits_per_weight``, each where its parts were measured.
    """
    values = {name: value for name, value in record.metrics.items() if OF_LAYER not in name}
    if (share := retention(record)) is not None:
        values[KEPT] = share
        if (error := values.get(record.headline + STDERR)) is not None:
            values[KEPT + STDERR] = error / abs(record.trivial - record.baseline[record.headline])
    values |= _likelihood_ratios(record)
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
