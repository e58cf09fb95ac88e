"""Grading, once per task: predictions of text, of likelihood and of labels."""

import math
from collections import Counter
from collections.abc import Sequence

from slimexp.data.base import Direction, Example, Task

HEADLINES: dict[Task, tuple[str, Direction]] = {
    "seq2seq": ("cer", "min"),
    "causal_lm": ("bits_per_byte", "min"),
    "classification": ("macro_f1", "max"),
}


def grade_text(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """Character and word error rate (edits / reference length, both in [0, inf)) and share of exact matches."""
    from torchmetrics.functional.text import char_error_rate, word_error_rate

    _check(predictions, examples)
    targets = [example.target or "" for example in examples]
    return {
        "cer": float(char_error_rate(list(predictions), targets)),
        "wer": float(word_error_rate(list(predictions), targets)),
        "exact_match": sum(map(str.__eq__, predictions, targets)) / len(targets),
    }


def grade_likelihood(predictions: Sequence[tuple[float, int, int]], examples: Sequence[Example]) -> dict[str, float]:
    """Bits per UTF-8 byte, perplexity per token and token accuracy, over all text together.

    Args:
        predictions: ``(nats, tokens, hits)`` per text, as ``Corpus.grade`` describes.
        examples: The texts; their bytes are the denominator, so tokenizers can be compared.
    """
    import torch
    from torchmetrics.aggregation import SumMetric

    _check(predictions, examples)
    sums = []
    for column in (*zip(*predictions, strict=True), [len(example.source.encode()) for example in examples]):
        total = SumMetric().set_dtype(torch.float64)
        total.update([float(value) for value in column])
        sums.append(float(total.compute()))
    nats, tokens, hits, size = sums
    if not tokens or not size:
        raise ValueError("no token was predicted: texts must be longer than one token")
    return {
        "bits_per_byte": nats / math.log(2) / size,
        "perplexity": math.exp(min(nats / tokens, 700.0)),  # e^700 is the last finite hundred
        "token_accuracy": hits / tokens,
    }


def grade_label(predictions: Sequence[int], examples: Sequence[Example], *, classes: int) -> dict[str, float]:
    """Accuracy and macro F1 (mean over the classes that occur in prediction or truth)."""
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    _check(predictions, examples)
    predicted = torch.tensor([int(label) for label in predictions])
    truth = torch.tensor([example.label for example in examples])
    return {
        "accuracy": float(multiclass_accuracy(predicted, truth, num_classes=classes, average="micro")),
        "macro_f1": float(multiclass_f1_score(predicted, truth, num_classes=classes, average="macro")),
    }


def byte_bits(train: Sequence[Example], examples: Sequence[Example]) -> float:
    """Bits per UTF-8 byte of guessing each byte by how often it occurs in ``train`` (every byte once more)."""
    counts = Counter(byte for example in train for byte in example.source.encode())
    total = counts.total() + 256
    text = Counter(byte for example in examples for byte in example.source.encode())
    nats = sum(count * math.log(total / (counts[byte] + 1)) for byte, count in text.items())
    return nats / math.log(2) / max(text.total(), 1)


def commonest_label(examples: Sequence[Example]) -> int:
    """The commonest class; of equally common ones the first."""
    counts = Counter(example.label for example in examples if example.label is not None)
    return min(counts, key=lambda label: (-counts[label], label))


def _check(predictions: Sequence[object], examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("nothing to grade: no examples")
    if len(predictions) != len(examples):
        raise ValueError(f"grading needs one prediction per example, got {len(predictions)} for {len(examples)}")
