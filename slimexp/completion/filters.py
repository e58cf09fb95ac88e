"""Which texts of a teacher are fit to be learned from."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slimexp.completion.near_duplicates import first_ones
from slimexp.completion.store import Text
from slimexp.data.base import Corpus, Example

Verdicts = Mapping[str, Callable[[Text], bool]]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a text must be like to be kept.

    Attributes:
        shortest: Least number of characters that are written, blanks around them aside, >= 1.
        finished: Whether targets that were cut off go; a causal LM's text need not end.
        compression: Largest number of bytes that zlib makes one of: text in loops has many (Radford et al. 2023,
            "Robust speech recognition via large-scale weak supervision", section 4.5, decode transcripts anew above
            2.4). Passages of source code have 2.3, one in a thousand 5. ``None`` keeps all.
        worst_cer: Largest character error rate against the gold target (seq2seq); ``None`` keeps all.
        similarity: Least similarity of near-duplicates (Jaccard's index of their runs of 8 characters), of which the
            first stays, in (0, 1]; below 0.6 some are missed. ``None`` keeps all.
    """

    shortest: int
    finished: bool
    compression: float | None
    worst_cer: float | None
    similarity: float | None

    def __post_init__(self) -> None:
        if self.shortest < 1:
            raise ValueError(
                f"filters.shortest must be >= 1 character, for nobody learns from none, got {self.shortest}"
            )
        if self.compression is not None and self.compression <= 1:
            raise ValueError(f"filters.compression must be > 1, or null to keep all, got {self.compression}")
        if self.worst_cer is not None and self.worst_cer < 0:
            raise ValueError(f"filters.worst_cer must be >= 0, or null to keep all, got {self.worst_cer}")
        if self.similarity is not None and not 0 < self.similarity <= 1:
            raise ValueError(f"filters.similarity must be in (0, 1], or null to keep all, got {self.similarity}")

    def kept(self, texts: Sequence[Text], corpus: Corpus) -> tuple[list[Text], dict[str, int]]:
        """The texts that are fit, and how many were dropped for what, the first reason of each.

        Args:
            texts: What was written.
            corpus: The corpus that it was written for, with its gold targets.
        """
        left, dropped = list(texts), {}
        for name, holds in self._verdicts(corpus).items():
            before, left = len(left), [text for text in left if holds(text)]
            dropped[name] = before - len(left)
        if self.worst_cer is not None and corpus.task == "seq2seq":
            near = [error <= self.worst_cer for error in errors(left, corpus)]
            dropped["unlike the gold target"] = near.count(False)
            left = [text for text, fits in zip(left, near, strict=True) if fits]
        if self.similarity is not None:
            first = first_ones([f"{text.source}\n{text.text}" for text in left], self.similarity)
            dropped["near-duplicates"] = len(left) - len(first)
            left = [left[index] for index in first]
        return left, dropped

    def _verdicts(self, corpus: Corpus) -> Verdicts:
        """What drops a text -> whether it is free of that, by itself."""
        return {
            "empty or short": lambda text: len(text.text.strip()) >= self.shortest,
            "cut off": lambda text: text.finished or not self.finished or corpus.task == "causal_lm",
            "in loops": lambda text: self.compression is None or compression(text.text) <= self.compression,
        }


def compression(text: str) -> float:
    """Bytes of a text over the bytes that zlib makes of them."""
    data = text.encode("utf-8", errors="surrogatepass")
    return len(data) / len(zlib.compress(data, 9))


def errors(texts: Sequence[Text], corpus: Corpus) -> list[float]:
    """Character error rate of each text against the gold target of its row."""
    if not texts:
        return []
    gold = [corpus.training_example(text.row, text.epoch) for text in texts]
    rows = corpus.by_row([text.text for text in texts], [Example(row.source, row.target) for row in gold])
    if "cer" not in rows:
        raise ValueError(
            f"{type(corpus).__name__} grades no character error rate row by row: set completion.filters.worst_cer=null"
        )
    return [float(edits / max(size, 1.0)) for edits, size in zip(rows["cer"].tops, rows["cer"].bottoms, strict=True)]
