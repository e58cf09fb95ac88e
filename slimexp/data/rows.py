"""Results question by question, in a compact file beside the records.

Two models that answered the same questions are compared question by question: most of what a figure owes to the choice
of questions is common to both, and falls out of the difference.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from slimexp.file import integrity, regular
from slimexp.file.integrity import Damaged

LARGEST = 2**28  # bytes of a file; ten million questions have fewer
_ABOUT = "about"


@dataclass(frozen=True, eq=False)
class Rows:
    """A figure question by question: the sum of ``tops`` over the sum of ``bottoms``, unless a subclass says otherwise.

    Attributes:
        questions: uint64 [N], digests of the questions, in the order in which the test numbers them.
        tops: float64 [N], such as 1 for a right answer, the edits of a sentence, the bits of a text.
        bottoms: float64 [N], such as 1, the characters of a sentence, the bytes of a text.
        exponential: Whether the figure is e to the power of the ratio, as a perplexity is.
    """

    questions: NDArray[np.uint64]
    tops: NDArray[np.float64]
    bottoms: NDArray[np.float64]
    exponential: bool = False

    @property
    def figure(self) -> float:
        """The figure over all questions."""
        ratio = float(self.tops.sum() / self.bottoms.sum())
        return float(np.exp(min(ratio, 700.0))) if self.exponential else ratio  # e^710 is infinite in float64

    @cached_property
    def asked(self) -> str:
        """Digest of what was asked: results compare row by row where it is the same.

        That is the questions in their order, and what they count for: perplexities compare only where both models
        split a text into as many tokens.
        """
        kind = f"{type(self).__name__} {self.exponential}".encode()
        return hashlib.sha256(kind + self.questions.tobytes() + self.bottoms.tobytes()).hexdigest()

    def drawn(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The figure over questions drawn with replacement, made anew from their sums.

        Args:
            counts: [draws, N], how often each question was drawn.

        Returns:
            [draws]; 0 for a draw whose questions count for nothing.
        """
        return self.drawn_together([self], counts)[:, 0]

    @classmethod
    def drawn_together(cls, results: "Sequence[Rows]", counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """``drawn`` of several models with the same ``asked``, in one product: [draws, models]."""
        *tops, bottoms = (counts @ np.stack([*(one.tops for one in results), results[0].bottoms], 1)).T
        ratios = np.divide(tops, bottoms, out=np.zeros((len(results), len(counts))), where=bottoms > 0).T
        return np.exp(np.minimum(ratios, 700.0)) if results[0].exponential else ratios

    def influence(self) -> NDArray[np.float64]:
        """What each question adds to the figure's deviation from the truth, [N] (Cochran 1977, chapter 6)."""
        ratio = self.tops.sum() / self.bottoms.sum()
        slope = self.figure if self.exponential else 1.0
        return slope * (self.tops - ratio * self.bottoms) / self.bottoms.sum()


class MacroF1(Rows):
    """Macro F1, the mean over the classes that occur in predictions or labels, which is no ratio of sums over rows.

    Here ``tops`` are the classes that were predicted, and ``bottoms`` the true ones, as numbers.
    """

    @property
    def figure(self) -> float:
        return float(self.drawn(np.ones((1, len(self.tops))))[0])

    def drawn(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        f1, total = self._by_class(counts)
        return f1.sum(1) / (total > 0).sum(1)

    @classmethod
    def drawn_together(cls, results: Sequence[Rows], counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([one.drawn(counts) for one in results], 1)

    def influence(self) -> NDArray[np.float64]:
        f1, total = (row[0] for row in self._by_class(np.ones((1, len(self.tops)))))
        predicted, true = self._classes
        added = 2 * (predicted == true) / total[true] - f1[predicted] / total[predicted] - f1[true] / total[true]
        return added / len(total)

    @cached_property
    def _classes(self) -> NDArray[np.int64]:
        """[2, N]: the predicted and the true class of each row, numbered among those that occur."""
        return np.unique(np.stack([self.tops, self.bottoms]), return_inverse=True)[1].reshape(2, -1)

    def _by_class(self, counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """F1 of each class, and how often it is predicted or true, both [draws, classes]."""
        predicted, true = np.eye(self._classes.max() + 1)[self._classes]  # [N, classes]
        total, hits = counts @ (predicted + true), counts @ (predicted * true)
        return np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0), total


@dataclass(frozen=True)
class Scores:
    """What a model has in one test.

    Attributes:
        figures: Name -> value.
        rows: Name -> the figure question by question, of those figures that are made of questions.
    """

    figures: dict[str, float]
    rows: dict[str, Rows]


def question_digest(question: Any) -> int:
    """Digest of a question in 64 bits, by its text."""
    return int.from_bytes(hashlib.sha256(repr(question).encode(errors="replace")).digest()[:8], "big")


def write(path: Path, scores: Scores, about: Mapping[str, object]) -> None:
    """Write results as compressed arrays of NumPy, whole at every moment.

    Args:
        path: The file, ``.npz``: ``about`` holds JSON, ``questions``, ``tops`` and ``bottoms`` of a figure lie under
            the numbers that it gives them.
        scores: The results.
        about: What they are of, for a reader: model, test and settings.
    """
    arrays: list[NDArray[np.generic]] = []
    known: dict[bytes, int] = {}

    def number(array: NDArray[np.generic]) -> int:
        content = array.dtype.str.encode() + array.tobytes()
        if content not in known:  # figures of one test have the same questions
            known[content] = len(arrays)
            arrays.append(array)
        return known[content]

    rows = {
        name: {
            "questions": number(row.questions),
            "tops": number(row.tops),
            "bottoms": number(row.bottoms),
            "exponential": row.exponential,
            "macro_f1": isinstance(row, MacroF1),
        }
        for name, row in scores.rows.items()
    }
    text = json.dumps({**about, "figures": scores.figures, "rows": rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    with integrity.aside(path) as partial, partial.open("xb") as file:
        contents = {str(i): array for i, array in enumerate(arrays)}
        np.savez_compressed(file, **{_ABOUT: np.frombuffer(text.encode(), dtype=np.uint8)}, **contents)  # type: ignore[arg-type]


def read(path: Path) -> Scores:
    """Read what ``write`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: The file is not what was written; nothing in it is run.
    """
    try:
        with np.load(io.BytesIO(regular.content(path, LARGEST)), allow_pickle=False) as file:
            about = json.loads(file[_ABOUT].tobytes())
            rows = {name: _rows(file, row) for name, row in about["rows"].items()}
        integrity.check_numbers(about["figures"], "figures")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise Damaged(f"{path.name} holds no results: {error}") from error
    return Scores({name: float(value) for name, value in about["figures"].items()}, rows)


def _rows(file: Mapping[str, NDArray[np.generic]], row: Mapping[str, int]) -> Rows:
    questions, tops, bottoms = (np.asarray(file[str(row[part])]) for part in ("questions", "tops", "bottoms"))
    if not questions.shape == tops.shape == bottoms.shape == (len(questions),):
        raise ValueError("a figure has other numbers of questions and results")
    if questions.dtype != np.uint64 or not (np.isfinite(tops).all() and np.isfinite(bottoms).all()):
        raise ValueError("questions must be whole numbers and results finite")
    kind = MacroF1 if row.get("macro_f1") else Rows  # which older versions did not keep
    return kind(
        questions.astype(np.uint64), tops.astype(np.float64), bottoms.astype(np.float64), bool(row["exponential"])
    )
