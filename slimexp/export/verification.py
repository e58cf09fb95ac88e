"""An export is done once the engine that reads it computes what PyTorch does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimexp.export.base import Artifact, Format, Ids, Plain, Running

# Any text does: what is compared does not depend on it. Lengths differ, so that no shape is fixed.
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def mean(values): return sum(values) / len(values)",
    "teh standard libary",
)
NEW_TOKENS = 20


class Differs(ValueError):
    """An engine computes something else than PyTorch."""


@dataclass(frozen=True)
class Agreement:
    """How an engine's answers compare with those of plain PyTorch in float32.

    Attributes:
        gap: Largest absolute difference of a logit.
        scale: Largest absolute logit.
        tokens: Tokens of greedy generation that were compared; 0 of a classifier.
        same_tokens: Those of them up to the first that differs.
    """

    gap: float
    scale: float
    tokens: int
    same_tokens: int

    def __str__(self) -> str:
        written = f", {self.same_tokens} of {self.tokens} greedy tokens the same" if self.tokens else ""
        return f"logits differ by at most {self.gap:.2g} of {self.scale:.3g}{written}"


def verify(model: Artifact, kind: Format, running: Running) -> Agreement:
    """Compare a loaded export with the artifact.

    Args:
        model: The artifact.
        kind: The format.
        running: The export, loaded by its engine.

    Raises:
        Differs: Logits differ by more than rounding, or other tokens are written; the message says by how much.
    """
    agreement = compare(model, running)
    if not agreement.gap <= kind.tolerance or agreement.same_tokens < agreement.tokens:
        raise Differs(f"the engine computes something else than PyTorch: {agreement} (at most {kind.tolerance:g})")
    return agreement


def compare(model: Artifact, running: Running) -> Agreement:
    """What an engine computes of some rows, beside PyTorch."""
    family = model.family
    plain = Plain(family)
    gap = scale = 0.0
    tokens = same = 0
    for number, (source, start) in enumerate(rows(model)):
        expected, actual = (each.logits(source, start) for each in (plain, running))
        if expected.shape != actual.shape:
            raise Differs(f"the engine gives logits of shape {actual.shape}, PyTorch {expected.shape}")
        gap = float(np.maximum(gap, np.abs(actual - expected).max()))  # NaN stays
        scale = max(scale, float(np.abs(expected).max()))
        if model.task != "classification" and number == 0:
            wanted, written = (each.greedy(source, start, NEW_TOKENS) for each in (plain, running))
            tokens += NEW_TOKENS
            same += _same(wanted, written)
    return Agreement(gap, scale, tokens, same)


def rows(model: Artifact) -> list[tuple[Ids, Ids]]:
    """Ids that a model reads, and those that its decoder starts with."""
    family = model.family
    config: Any = family.model.config
    start = [config.decoder_start_token_id] if model.task == "seq2seq" else []
    room = family.max_length - (NEW_TOKENS if model.task == "causal_lm" else 0)
    return [(ids[: max(1, room)], start) for ids in family.token_ids(TEXTS)]


def _same(wanted: Sequence[int], written: Sequence[int]) -> int:
    pairs = zip(wanted, written, strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(wanted))
