"""Metrics of each task: of predicted text, likelihoods and labels.

Each metric comes with its standard error over the sampling of rows, ``<metric>_stderr``, unless there is a single row.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slimexp.data.base import Direction, Example, Task
from slimexp.data.rows import MacroF1, Rows, question_digest

HEADLINES: dict[Task, tuple[str, Direction]] = {
    "seq2seq": ("cer", "min"),
    "causal_lm": ("bits_per_byte", "min"),
    "classification": ("macro_f1", "max"),
}
_RESAMPLES = 1000  # of the bootstrap


def grade_text(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """Character and word error rate (edits / reference length, both in [0, inf)), and share of exact matches."""
    grades: dict[str, float] = {}
    for name, rows in text_by_row(predictions, examples).items():
        grades |= _share(name, rows)
    return grades


def text_by_row(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Rows]:
    """What ``grade_text`` gives, row by row."""
    _check(predictions, examples)
    targets = [example.target or "" for example in examples]
    exact = [prediction == target for prediction, target in zip(predictions, targets, strict=True)]
    return {
        "cer": _rows(examples, *_edits("char_error_rate", predictions, targets, list)),
        "wer": _rows(examples, *_edits("word_error_rate", predictions, targets, str.split)),
        "exact_match": _rows(examples, exact, [1] * len(targets)),
    }


def grade_likelihood(predictions: Sequence[tuple[float, int, int]], examples: Sequence[Example]) -> dict[str, float]:
    """Perplexity per token, bits per UTF-8 byte and token accuracy, over all text together.

    Perplexities compare models of one tokenizer, bits per byte any.

    Args:
        predictions: ``(nats, tokens, hits)`` per text, as ``Corpus.grade`` describes.
        examples: The texts; their bytes are the denominator, so that models of different tokenizers can be compared.

    Raises:
        ValueError: No token was predicted.
    """
    import torch
    from torchmetrics.aggregation import SumMetric

    _check(predictions, examples)
    columns = [*zip(*predictions, strict=True), [len(example.source.encode()) for example in examples]]
    sums = []
    for column in columns:
        total = SumMetric().set_dtype(torch.float64)
        total.update([float(value) for value in column])
        sums.append(float(total.compute()))
    nats, tokens, hits, size = sums
    if not tokens or not size:
        raise ValueError("no token was predicted: texts must be longer than one token")
    perplexity = math.exp(min(nats / tokens, 700.0))  # e^710 is infinite in float64
    grades = {"perplexity": perplexity, "bits_per_byte": nats / math.log(2) / size, "token_accuracy": hits / tokens}
    if len(examples) > 1:
        rows_nats, rows_tokens, rows_hits, rows_size = columns
        grades["bits_per_byte_stderr"] = _error(rows_nats, rows_size) / math.log(2)
        grades["perplexity_stderr"] = _error(rows_nats, rows_tokens) * perplexity
        grades["token_accuracy_stderr"] = _error(rows_hits, rows_tokens)
    return grades


def likelihood_by_row(predictions: Sequence[tuple[float, int, int]], examples: Sequence[Example]) -> dict[str, Rows]:
    """What ``grade_likelihood`` gives, row by row."""
    _check(predictions, examples)
    nats, tokens, hits = zip(*predictions, strict=True)
    size = [len(example.source.encode()) for example in examples]
    return {
        "perplexity": replace(_rows(examples, nats, tokens), exponential=True),
        "bits_per_byte": _rows(examples, np.array(nats) / math.log(2), size),
        "token_accuracy": _rows(examples, hits, tokens),
    }


def grade_label(predictions: Sequence[int], examples: Sequence[Example], *, classes: int) -> dict[str, float]:
    """Accuracy and macro F1, the mean over the classes that occur in predictions or labels."""
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    _check(predictions, examples)
    predicted = np.array([int(label) for label in predictions])
    truth = np.array([example.label for example in examples], dtype=int)
    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    grades = {
        "accuracy": float(multiclass_accuracy(*pair, num_classes=classes, average="micro")),
        "macro_f1": float(multiclass_f1_score(*pair, num_classes=classes, average="macro")),
    }
    if len(examples) > 1:
        grades["accuracy_stderr"] = _error(predicted == truth, np.ones(len(truth)))
        grades["macro_f1_stderr"] = _macro_f1_error(predicted, truth, classes)
    return grades


def label_by_row(predictions: Sequence[int], examples: Sequence[Example]) -> dict[str, Rows]:
    """What ``grade_label`` gives, row by row."""
    _check(predictions, examples)
    predicted, true = [int(label) for label in predictions], [example.label or 0 for example in examples]
    right = [one == other for one, other in zip(predicted, true, strict=True)]
    rows = _rows(examples, right, [1] * len(right))
    labels = MacroF1(rows.questions, np.array(predicted, dtype=float), np.array(true, dtype=float))
    return {"accuracy": rows, "macro_f1": labels}


def byte_bits(train: Sequence[Example], examples: Sequence[Example]) -> float:
    """Bits per UTF-8 byte of predicting bytes by their frequency in ``train``, with add-one smoothing."""
    counts = Counter(byte for example in train for byte in example.source.encode())
    total = counts.total() + 256
    text = Counter(byte for example in examples for byte in example.source.encode())
    nats = sum(count * math.log(total / (counts[byte] + 1)) for byte, count in text.items())
    return nats / math.log(2) / max(text.total(), 1)


def guessed_macro_f1(train: Sequence[Example], examples: Sequence[Example]) -> float:
    """Macro F1 that is expected of drawing classes at random, as often as they are in ``train``.

    A class that is guessed at rate q and occurs at rate p has F1 = 2pq / (p + q) over many rows. Of all guesses that do
    not read the text this is the best where both splits are alike: 1 / number of classes, when the commonest class
    alone has 2p / (1 + p) of that, so that a classifier with a random head does not pass for a trained one.
    """
    guessed, true = _rates(train), _rates(examples)
    f1 = [2 * guessed[label] * true[label] / (guessed[label] + true[label]) for label in guessed.keys() & true.keys()]
    return sum(f1) / len(guessed | true)


def _rates(examples: Sequence[Example]) -> dict[int, float]:
    """Class -> share of the rows that have it."""
    counts = Counter(example.label for example in examples if example.label is not None)
    return {label: count / counts.total() for label, count in counts.items()}


def commonest_label(examples: Sequence[Example]) -> int:
    """Index of the commonest class; of equally common classes the first."""
    counts = Counter(example.label for example in examples if example.label is not None)
    return min(counts, key=lambda label: (-counts[label], label))


def _rows(examples: Sequence[Example], tops: ArrayLike, bottoms: ArrayLike) -> Rows:
    questions = [question_digest((row.source, row.target, row.label)) for row in examples]
    return Rows(np.array(questions, dtype=np.uint64), np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float))


def _edits(
    rate: str, predictions: Sequence[str], targets: Sequence[str], parts: Callable[[str], list[str]]
) -> tuple[list[int], list[int]]:
    """Edits and length of each row, in ``parts`` of a text; torchmetrics returns only their ratio."""
    lengths = [len(parts(target)) for target in targets]
    rows = zip(predictions, targets, lengths, strict=True)
    edits = [round(_rate(rate, p, t) * length) if length else len(parts(p)) for p, t, length in rows]
    return edits, lengths


@lru_cache(maxsize=2**16)
def _rate(name: str, prediction: str, target: str) -> float:
    """A metric of one row, which figures and rows both ask for."""
    from torchmetrics.functional import text

    return float(getattr(text, name)([prediction], [target]))


def _share(name: str, rows: Rows) -> dict[str, float]:
    """A ratio of sums over rows, with its standard error."""
    share = {name: float(rows.tops.sum() / rows.bottoms.sum()) if rows.bottoms.any() else math.inf}
    several = len(rows.tops) > 1 and rows.bottoms.any()
    return {**share, f"{name}_stderr": _error(rows.tops, rows.bottoms)} if several else share


def _error(tops: ArrayLike, bottoms: ArrayLike) -> float:
    """Standard error of sum(tops) / sum(bottoms) over rows, as a ratio of two means (Cochran 1977, chapter 6)."""
    top, bottom = np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float)
    residuals = top - top.sum() / bottom.sum() * bottom
    return math.sqrt(len(top) / (len(top) - 1) * float((residuals**2).sum())) / float(bottom.sum())


def _macro_f1_error(predicted: NDArray[np.int_], truth: NDArray[np.int_], classes: int) -> float:
    """Standard error by the bootstrap over rows (Efron 1979), with a fixed seed: macro F1 is no ratio of sums."""
    cells, counts = np.unique(np.stack([predicted, truth]), axis=1, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(truth), counts / len(truth), size=_RESAMPLES)
    one_hot = np.eye(classes)[cells]  # [2, cells, classes]
    total = draws @ one_hot.sum(0)  # of predictions and labels per class, [resamples, classes]
    hits = draws @ (one_hot[0] * one_hot[1])
    f1 = np.divide(2 * hits, total, where=total > 0, out=np.zeros_like(total))
    return float((f1.sum(1) / (total > 0).sum(1)).std(ddof=1))


def _check(predictions: Sequence[object], examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("nothing to grade: no examples")
    if len(predictions) != len(examples):
        raise ValueError(f"grading needs one prediction per example, got {len(predictions)} for {len(examples)}")
