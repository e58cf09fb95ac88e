"""A corpus whose training rows are a teacher's texts, alone or beside the gold ones."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from slimexp.completion.store import Text
from slimexp.data.base import Corpus, Example, Split
from slimexp.data.rows import Rows


class TrainingRows(Corpus):
    """Another corpus with other training rows; held-out splits, grading and classes are its own.

    Args:
        corpus: The other corpus, whose gold rows keep their noise of every epoch.
        texts: What a teacher wrote on training rows of it, at least one.
        share: Share of the rows that the teacher wrote, in (0, 1]: as many of its texts and of the gold rows are taken
            as make it up.
        seed: Seed of the choice.
    """

    def __init__(self, corpus: Corpus, texts: Sequence[Text], *, share: float, seed: int) -> None:
        self.corpus = corpus
        self.task, self.labels = corpus.task, corpus.labels
        self.headline, self.direction = corpus.headline, corpus.direction
        gold = len(corpus.splits["train"])
        count, of_gold = mixed(len(texts), gold, share)
        random = Random(seed)
        self.written = [texts[i] for i in sorted(random.sample(range(len(texts)), count))]
        self.gold = sorted(random.sample(range(gold), of_gold))

    def load(self) -> Mapping[Split, Sequence[Example]]:
        gold = self.corpus.splits["train"]
        train = [*map(self._example, self.written), *(gold[index] for index in self.gold)]
        return {**self.corpus.splits, "train": train}

    def training_example(self, index: int, epoch: int) -> Example:
        """Row ``index``: a text, which stays the same, or a gold row with the noise of ``epoch``."""
        if index < len(self.written):
            return self.splits["train"][index]
        return self.corpus.training_example(self.gold[index - len(self.written)], epoch)

    @property
    def is_fixed(self) -> bool:
        return self.corpus.is_fixed or not self.gold

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return self.corpus.grade(predictions, examples)

    def by_row(self, predictions: Sequence[Any], examples: Sequence[Example]) -> Mapping[str, Rows]:
        return self.corpus.by_row(predictions, examples)

    def trivial(self, examples: Sequence[Example]) -> float:
        return self.corpus.trivial(examples)

    def _example(self, text: Text) -> Example:
        if self.task == "seq2seq":
            return Example(text.source, text.text)
        return Example(text.source + text.text)


def mixed(texts: int, gold: int, share: float) -> tuple[int, int]:
    """How many texts and gold rows are taken so that texts are ``share`` of them, as many of both as there are.

    Args:
        texts: Number of texts.
        gold: Number of gold rows.
        share: In (0, 1].
    """
    if share == 1:
        return texts, 0
    all_texts = round(texts * (1 - share) / share)  # gold rows beside all texts
    if all_texts <= gold:
        return texts, all_texts
    return max(1, round(gold * share / (1 - share))), gold
