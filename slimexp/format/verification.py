"""An export is done once the engine that reads it computes what PyTorch does.

Differences of logits are held against their standard deviation about the mean of a row: float32 rounds in proportion to
what it adds up, so that a model with logits of 40 is as right with ten times the difference as one with logits of 4,
and what all logits of a row have in common changes no probability.

The tolerance of formats, 0.001, lies between two measurements: float32 and float64 differ by 2e-6 (10 layers of random
text) to 6e-5 (30 layers of SmolLM2), and one percent of a single layer's weight more moves a logit by 5e-3 or more.

Where layers round what they read, a sum in another order takes the next step now and then, a layer after it rounds
others anew, and so on: two engines that round alike agree as well as either does with one that does not round. Then
the measure is how far that one is (``Format.noise``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimexp.format.base import Artifact, Format, Ids, Plain, Running

# Any text does: what is compared does not depend on it. Lengths differ, so that no shape is fixed.
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def mean(values): return sum(values) / len(values)",
    "teh standard libary",
)
# What tokenizers split in unlike ways: digits, white space, contractions, accents, other scripts and emoji.
HARD_TEXTS = (*TEXTS, "In 2024 it'll cost $12,345.60!", "if x:\n\n\treturn  {'a': 1}   # done\n", "naïve Über 東京 🙂.")
NEW_TOKENS = 20
_LEAST = float(np.finfo(np.float32).tiny)


class Differs(ValueError):
    """An engine computes something else than PyTorch."""


@dataclass(frozen=True)
class Agreement:
    """How an engine's answers compare with those of plain PyTorch in float32.

    Attributes:
        gap: Largest absolute difference of a logit.
        rms: Root of the mean square of all differences.
        spread: Standard deviation of PyTorch's logits about the mean of their row.
        tokens: Tokens of greedy generation that were compared; 0 of a classifier.
        same_tokens: Those of them up to the first that differs.
        lead: How far PyTorch's logit of its own token is above that of the engine's, where they first differ.
        allowed: What ``relative`` may be where the artifact rounds activations; ``None`` where it does not.
    """

    gap: float
    rms: float
    spread: float
    tokens: int
    same_tokens: int
    lead: float
    allowed: float | None = None

    @property
    def relative(self) -> float:
        """The largest difference as a share of the standard deviation."""
        return self.gap / max(self.spread, _LEAST)

    @property
    def relative_rms(self) -> float:
        """The root mean square of differences as a share of the standard deviation."""
        return self.rms / max(self.spread, _LEAST)

    def within(self, tolerance: float) -> bool:
        """Whether nothing but rounding of ``tolerance`` (as ``relative``) tells the engine from PyTorch.

        Two logits that are nearer to each other than twice as much may trade places, and with them two tokens.
        """
        return self.relative <= tolerance and self.lead <= 2 * tolerance * self.spread  # NaN is no agreement

    def __str__(self) -> str:
        written = f", {self.same_tokens} of {self.tokens} greedy tokens the same" if self.tokens else ""
        noise = "" if self.allowed is None else f" (up to {self.allowed:.2g} where inputs are rounded)"
        return (
            f"logits differ by at most {self.gap:.2g}, {self.relative:.2g} of their standard deviation{noise}{written}"
        )


def verify(model: Artifact, kind: Format, running: Running) -> Agreement:
    """Compare a loaded export with the artifact.

    Args:
        model: The artifact.
        kind: The format.
        running: The export, loaded by its engine.

    Raises:
        Differs: Logits differ by more than rounding, other tokens are written, or text is split into other tokens; the
            message says by how much.
    """
    agreement, allowed = compare(model, running), tolerance(model, kind)
    if not agreement.within(allowed):
        raise Differs(f"the engine computes something else than PyTorch: {agreement} (at most {allowed:.2g})")
    _compare_tokens(model, running)
    return agreement if allowed == kind.tolerance else replace(agreement, allowed=allowed)


def tolerance(model: Artifact, kind: Format) -> float:
    """Largest difference of a logit that rounding makes, as a share of their standard deviation."""
    if not (kind.noise and model.rounds_activations):
        return kind.tolerance
    return max(kind.tolerance, kind.noise * compare(model, Plain(model.unrounded)).relative)


def verify_as_run(model: Artifact, kind: Format, running: Running) -> Agreement:
    """Measure an export as the engine's users run it, which rounds more; tokens may differ.

    Raises:
        Differs: The root mean square of differences is above ``kind.rounding``: it is no longer the same model.
    """
    agreement = compare(model, running)
    if not agreement.relative_rms <= kind.rounding:
        raise Differs(
            f"the engine as it is run computes something else than PyTorch: {agreement}, in the root mean square "
            f"{agreement.relative_rms:.2g} (at most {kind.rounding:g})"
        )
    return agreement


def compare(model: Artifact, running: Running) -> Agreement:
    """What an engine computes of some rows, beside PyTorch."""
    plain = Plain(model.family.model)
    gap, differences, about_means = 0.0, [], []
    tokens, same, lead = 0, 0, 0.0
    for number, (source, start) in enumerate(rows(model)):
        expected, actual = (each.logits(source, start) for each in (plain, running))
        if expected.shape != actual.shape:
            raise Differs(f"the engine gives logits of shape {actual.shape}, PyTorch {expected.shape}")
        gap = float(np.maximum(gap, np.abs(actual - expected).max()))  # NaN stays
        differences.append((actual - expected).ravel())
        about_means.append((expected - expected.mean(-1, keepdims=True)).ravel())
        if model.task != "classification" and number == 0:
            wanted, written = (each.greedy(source, start, NEW_TOKENS) for each in (plain, running))
            tokens += NEW_TOKENS
            same += _same(wanted, written)
            lead = _lead(plain, (source, start), wanted, written)
    return Agreement(gap, _root_mean_square(differences), _root_mean_square(about_means), tokens, same, lead)


def _root_mean_square(parts: Sequence[NDArray[np.float32]]) -> float:
    return float(np.sqrt(np.square(np.concatenate(parts), dtype=np.float64).mean()))


def rows(model: Artifact) -> list[tuple[Ids, Ids]]:
    """Ids that a model reads, and those that its decoder starts with."""
    family = model.family
    config: Any = family.model.config
    start = [config.decoder_start_token_id] if model.task == "seq2seq" else []
    room = family.max_length - (NEW_TOKENS if model.task == "causal_lm" else 0)
    return [(ids[: max(1, room)], start) for ids in family.token_ids(TEXTS)]


def _compare_tokens(model: Artifact, running: Running) -> None:
    """Raise where the engine's own tokenizer splits a text in another way."""
    split = running.token_ids(HARD_TEXTS)
    if split is None:
        return
    for text, wanted, actual in zip(HARD_TEXTS, model.family.token_ids(HARD_TEXTS), split, strict=True):
        if wanted != actual[: len(wanted)] or len(wanted) < min(len(actual), model.family.max_length):
            raise Differs(f"the engine splits {text!r} into the tokens {actual}, the tokenizer into {wanted}")


def _same(wanted: Sequence[int], written: Sequence[int]) -> int:
    pairs = zip(wanted, written, strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(wanted))


def _lead(plain: Plain, row: tuple[Ids, Ids], wanted: Sequence[int], written: Sequence[int]) -> float:
    """How far the logit of the first token that differs is above that of the token written in its place."""
    if (place := _same(wanted, written)) == len(wanted):
        return 0.0
    source, start = row
    before = wanted[:place]
    logits = plain.logits(source, [*start, *before]) if start else plain.logits([*source, *before], [])
    return float(logits[-1][wanted[place]] - logits[-1][written[place]])
