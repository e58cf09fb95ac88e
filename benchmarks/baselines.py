"""What does a simple model reach on the held-out text of our corpora?

    python -m benchmarks.baselines
    python -m benchmarks.baselines python_source --packages installed

Trains on the training split, chooses on validation, reports validation and test; prints one Markdown table per
corpus for the model cards. Deterministic; a few minutes on one core (``installed`` takes several times longer).

- ``spelling``: copy the input; a dictionary of the training words with the noisy channel of Norvig 2007, "How to
  write a spelling corrector" (one edit per word, a missing space included). Training sentences are clean text; the
  two constants of the channel are those with the lowest character error rate on validation.
- ``python_source``: byte n-grams with interpolated Witten-Bell and modified Kneser-Ney smoothing (Chen & Goodman
  1999, section 3), every passage from its own start, as the language models read it; and what the held-out text adds
  to the training text under LZMA, which reads the passages as one text and so learns from one for the next: an
  easier task, for orientation.
- ``docstring_topic``: bag of words and word pairs with naive Bayes and logistic regression.
"""

import argparse
import lzma
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data import grading
from slimexp.data.base import HELD_OUT, Corpus

Metrics = dict[str, float]
Row = tuple[str, Metrics, Metrics]  # name, validation, test
Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Smoothing = Literal["witten-bell", "kneser-ney"]

ORDERS = (3, 4, 5, 6, 8)  # at most 8: an n-gram is one 64-bit number
CHUNK = 1 << 24  # windows counted at once
_BYTE = np.uint64(8)
WORKSPACE = 1 << 27  # bytes; the largest window of LZMA's that stays near 1.5 GB of memory


# --- spelling --------------------------------------------------------------------------------------------------------

_ALPHABET = string.ascii_letters + "'-_"
_WORD = re.compile(r"([\"'(]*)(.*?)([\"').,;:!?]*)")


class Channel(NamedTuple):
    """The two constants of the noisy channel.

    Attributes:
        edit: Cost of one edit, in nats.
        unseen: Count that a word outside the dictionary is given.
    """

    edit: float
    unseen: float


class Dictionary:
    """Words of clean sentences and how often they occur; the first letter of a sentence counts as small."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.counts = Counter(core for text in sentences for _, core, _ in map(_parts, _decapitalised(text).split()))
        self.total = self.counts.total()
        self.candidates = cache(self._candidates)

    def correct(self, text: str, channel: Channel) -> str:
        words = (self._word(word, channel) for word in _decapitalised(text).split())
        corrected = " ".join(words)
        return corrected[:1].upper() + corrected[1:]

    def _word(self, word: str, channel: Channel) -> str:
        head, core, tail = _parts(word)
        kept = math.log(self.counts[core] or channel.unseen)
        best, score = max(self.candidates(core), key=lambda found: found[1], default=("", -math.inf))
        return head + (best if score - channel.edit > kept else core) + tail

    def _candidates(self, word: str) -> list[tuple[str, float]]:
        """Known words one edit away, and pairs of them, with the log of their (expected) count."""
        splits = [(word[:i], word[i:]) for i in range(len(word) + 1)]
        words = {other for other in _edits(splits) if other in self.counts and other != word}
        pairs = [(a, b) for a, b in splits if a in self.counts and b in self.counts and a and b]
        found = [(other, math.log(self.counts[other])) for other in sorted(words)]
        return found + [(f"{a} {b}", math.log(self.counts[a] * self.counts[b] / self.total)) for a, b in pairs]


def _edits(splits: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Everything one dropped, swapped, replaced or inserted character away."""
    for head, tail in splits:
        yield from (head + letter + tail for letter in _ALPHABET)
        if tail:
            yield head + tail[1:]
            yield from (head + letter + tail[1:] for letter in _ALPHABET)
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]


def _decapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]


def _parts(word: str) -> tuple[str, str, str]:
    """Opening punctuation, the word, closing punctuation."""
    match = _WORD.fullmatch(word)
    assert match
    return match[1], match[2], match[3]


def spelling(corpus: Corpus) -> list[Row]:
    dictionary = Dictionary(example.source for example in corpus.splits["train"])

    def grade(split: Any, channel: Channel) -> Metrics:
        rows = corpus.splits[split]
        return corpus.grade([dictionary.correct(row.source, channel) for row in rows], rows)

    channels = [Channel(edit, unseen) for edit, unseen in product((3.0, 5.0, 7.0, 9.0), (1e-4, 1e-2))]
    best = min(channels, key=lambda channel: grade("validation", channel)["cer"])
    copy = [corpus.grade([row.source for row in corpus.splits[split]], corpus.splits[split]) for split in HELD_OUT]
    name = f"dictionary of {len(dictionary.counts):,} words, edit {best.edit:g} nats, unseen {best.unseen:g}"
    return [("copy the input", copy[0], copy[1]), (name, grade("validation", best), grade("test", best))]


# --- python_source ---------------------------------------------------------------------------------------------------


class Level(NamedTuple):
    """One order of an interpolated model: ``P(w | h) = share(h w) + rest(h) P(w | h without its oldest byte)``.

    Attributes:
        grams: Sorted keys of the n-grams seen, the predicted byte lowest.
        share: Discounted relative frequency of each.
        contexts: Sorted keys of the contexts seen.
        rest: Mass that each leaves to the lower order.
    """

    grams: Keys
    share: Floats
    contexts: Keys
    rest: Floats

    def interpolate(self, grams: Keys, lower: Floats) -> Floats:
        share = _look_up(self.grams, self.share, grams, 0.0)
        return share + _look_up(self.contexts, self.rest, grams >> _BYTE, 1.0) * lower


def _look_up(keys: Keys, values: Floats, queries: Keys, otherwise: float) -> Floats:
    at = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[at] == queries, values[at], otherwise)


def windows(passages: Sequence[bytes], order: int) -> Iterator[Keys]:
    """Every byte with the ``order - 1`` before it as one number, in chunks; a passage starts after zero bytes."""
    lengths = np.cumsum([0, *map(len, passages)])
    bounds = np.searchsorted(lengths, np.arange(0, lengths[-1] + CHUNK, CHUNK))
    for start, stop in pairwise(bounds):
        padded = b"".join(b"\0" * (order - 1) + passage for passage in passages[start:stop])
        text = np.frombuffer(padded, dtype=np.uint8).astype(np.uint64)
        if len(text):
            keys = np.zeros(len(text) - order + 1, dtype=np.uint64)
            for i in range(order):
                keys = (keys << _BYTE) | text[i : len(keys) + i]
            yield keys[text[order - 1 :] != 0]


def grouped(keys: Keys, weights: Counts) -> tuple[Keys, Counts]:
    """Distinct keys, sorted, with the sums of their weights."""
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    return keys[starts], np.add.reduceat(weights, starts)


def counted(passages: Sequence[bytes], order: int) -> tuple[Keys, Counts]:
    """The n-grams of ``order`` and how often each occurs."""
    keys, counts = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    for chunk in windows(passages, order):
        new, times = np.unique(chunk, return_counts=True)
        keys, counts = grouped(np.r_[keys, new], np.r_[counts, times])
    return keys, counts


def level(grams: Keys, counts: Counts, smoothing: Smoothing) -> Level:
    contexts, starts = np.unique(grams >> _BYTE, return_index=True)
    totals = np.add.reduceat(counts, starts).astype(float)
    if smoothing == "witten-bell":
        totals += np.diff(np.r_[starts, len(grams)])
        discounted = counts.astype(float)
    else:
        discounted = counts - discounts(counts)[np.minimum(counts, 3)]
    share = discounted / totals[np.searchsorted(contexts, grams >> _BYTE)]
    return Level(grams, share, contexts, 1 - np.add.reduceat(share, starts))


def discounts(counts: Counts) -> Floats:
    """What modified Kneser-Ney takes off a count of 0, 1, 2 and more (Chen & Goodman 1999, equation 26)."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if not n.all():
        return np.array([0.0, 0.5, 0.5, 0.5])  # the few n-grams of the lowest orders hardly need any
    y = n[0] / (n[0] + 2 * n[1])
    taken = [i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3)]
    return np.clip([0.0, *taken], 0.0, [0.0, 1.0, 2.0, 3.0])


def ngram_bits(
    train: Sequence[bytes], held_out: Sequence[Sequence[bytes]], smoothing: Smoothing, orders: Sequence[int] = ORDERS
) -> dict[int, list[float]]:
    """Order -> bits per byte of each of the texts ``held_out``."""
    longest = max(orders)
    raw = {longest: counted(train, longest)}
    for order in range(longest - 1, 0, -1):
        raw[order] = grouped(raw[order + 1][0] & _mask(order), raw[order + 1][1])
    texts = [np.concatenate(list(windows(passages, longest))) for passages in held_out]
    lower = [np.full(len(text), 1 / 256) for text in texts]
    bits = {}
    for order in range(1, longest + 1):
        top = level(*raw[order], smoothing)
        whole = [top.interpolate(text & _mask(order), p) for text, p in zip(texts, lower, strict=True)]
        bits[order] = [float(-np.log2(p).mean()) for p in whole]
        if smoothing == "kneser-ney" and order < longest:  # below the top, in how many contexts and not how often
            distinct = raw[order + 1][0] & _mask(order)
            below = level(*grouped(distinct, np.ones(len(distinct), dtype=np.int64)), smoothing)
            lower = [below.interpolate(text & _mask(order), p) for text, p in zip(texts, lower, strict=True)]
        else:
            lower = whole
    return {order: bits[order] for order in orders}


def _mask(order: int) -> np.uint64:
    return np.uint64((1 << 8 * order) - 1)


def lzma_bits(train: Sequence[bytes], held_out: Sequence[Sequence[bytes]]) -> list[float]:
    """Bits per byte that each text adds to the compressed training text."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": WORKSPACE}]

    def size(*texts: Sequence[bytes]) -> int:
        joined = b"".join(passage for passages in texts for passage in passages)
        return len(lzma.compress(joined[-WORKSPACE:], format=lzma.FORMAT_RAW, filters=filters))

    alone = size(train)
    return [8 * (size(train, passages) - alone) / sum(map(len, passages)) for passages in held_out]


def python_source(corpus: Corpus) -> list[Row]:
    train, *held_out = ([row.source.encode() for row in corpus.splits[split]] for split in ("train", *HELD_OUT))
    rows = [("uniform bytes", [8.0, 8.0]), ("LZMA after the training text", lzma_bits(train, held_out))]
    for smoothing in ("witten-bell", "kneser-ney"):
        for order, bits in ngram_bits(train, held_out, smoothing).items():
            rows.append((f"{order}-gram bytes, {smoothing}", bits))
    return [(name, {"bits_per_byte": bits[0]}, {"bits_per_byte": bits[1]}) for name, bits in rows]


# --- docstring_topic -------------------------------------------------------------------------------------------------


def docstring_topic(corpus: Corpus) -> list[Row]:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    texts = {split: [row.source for row in rows] for split, rows in corpus.splits.items()}
    labels = [row.label for row in corpus.splits["train"]]

    terms = {1: "words", 2: "words and pairs"}

    def grade(model: Any) -> tuple[Metrics, Metrics]:
        model.fit(texts["train"], labels)
        validation, test = (
            corpus.grade(model.predict(texts[split]).tolist(), corpus.splits[split]) for split in HELD_OUT
        )
        return validation, test

    bayes = {
        f"naive Bayes, {terms[n]}, alpha {alpha:g}": make_pipeline(
            CountVectorizer(ngram_range=(1, n)), MultinomialNB(alpha=alpha)
        )
        for n, alpha in product(terms, (0.01, 0.03, 0.1, 0.3, 1.0))
    }
    logistic = {
        f"logistic regression, tf-idf of {terms[n]}, C {c:g}": make_pipeline(
            TfidfVectorizer(ngram_range=(1, n), sublinear_tf=True),
            LogisticRegression(C=c, class_weight="balanced", max_iter=1000),
        )
        for n, c in product(terms, (0.3, 1.0, 3.0, 10.0))
    }
    commonest = grading.commonest_label(corpus.splits["train"])
    guesses = [corpus.grade([commonest] * len(corpus.splits[split]), corpus.splits[split]) for split in HELD_OUT]
    rows: list[Row] = [("commonest class", guesses[0], guesses[1])]
    for models in (bayes, logistic):
        graded = [(name, *grade(model)) for name, model in models.items()]
        rows.append(max(graded, key=lambda row: row[1]["macro_f1"]))
    return rows


# --- main ------------------------------------------------------------------------------------------------------------

BASELINES = {"spelling": spelling, "python_source": python_source, "docstring_topic": docstring_topic}


def table(corpus: Corpus, rows: Sequence[Row]) -> str:
    """Markdown: the headline on validation and test, then the other metrics on test."""
    others = [name for name in rows[0][2] if name != corpus.headline and not name.endswith("_stderr")]
    head = ["baseline", f"{corpus.headline} (validation)", *(f"{name} (test)" for name in (corpus.headline, *others))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, validation, test in rows:
        figures = [validation[corpus.headline], *(test[key] for key in (corpus.headline, *others))]
        lines.append([name, *(f"{figure:.4f}" for figure in figures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="*", choices=[*BASELINES, []], help="all of them unless named")
    parser.add_argument("--packages", choices=("none", "installed"), default="none", help="further training text")
    arguments = parser.parse_args()
    for name in arguments.corpus or BASELINES:
        extra = [] if name == "docstring_topic" else [f"data.packages={arguments.packages}"]
        corpus: Corpus = build(compose([f"data={name}", *extra]).data)
        sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in corpus.splits.items())
        print(f"\n{name} ({'; '.join(extra) or 'library only'}; rows: {sizes})\n", flush=True)
        print(table(corpus, BASELINES[name](corpus)), flush=True)


if __name__ == "__main__":
    main()
