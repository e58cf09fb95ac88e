"""Results question by question, in a compact file beside the records.

Two models that answered the same questions are compared question by question: most of what a figure owes to the choice
of questions is common to both, and falls out of the difference.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
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
    """A figure question by question: the sum of ``tops`` over the sum of ``bottoms``.

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
    return Rows(
        questions.astype(np.uint64), tops.astype(np.float64), bottoms.astype(np.float64), bool(row["exponential"])
    )
