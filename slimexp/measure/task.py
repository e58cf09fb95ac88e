"""Quality of a model's predictions on held-out text."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from slimexp.data.base import HELD_OUT, Corpus, Direction, Example, Split
from slimexp.host.out_of_memory import halving
from slimexp.measure.base import Measure, Subject, spread, untouched
from slimexp.model.base import Family


class Task(Measure):
    """The corpus's own metrics of the model's predictions; ``task_examples`` is the number of rows.

    ``task_cut_rows``, the number of rows longer than the model's ``max_length``, is reported where there are any.

    Args:
        split: ``validation`` or ``test``.
        limit: Number of rows to predict, spread evenly over the split; ``None`` for all.
        batch_size: Number of rows at once.
        seed: Seed of the choice of rows: not the run's seed, so that runs compare on the same rows.
    """

    by_task: ClassVar[Mapping[str, Mapping[str, Direction]]] = {
        "seq2seq": {"cer": "min", "wer": "min", "exact_match": "max"},
        "causal_lm": {"bits_per_byte": "min", "perplexity": "min", "token_accuracy": "max"},
        "classification": {"accuracy": "max", "macro_f1": "max"},
    }
    directions: ClassVar[Mapping[str, Direction]] = {
        name: direction for figures in by_task.values() for name, direction in figures.items()
    }

    def __init__(self, *, split: Split, limit: int | None, batch_size: int, seed: int) -> None:
        if split not in HELD_OUT:
            raise ValueError(f"split must be one of {', '.join(HELD_OUT)} (training text is no test), got '{split}'")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be >= 1, or null for all rows, got {limit}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        self.split = split
        self.limit = limit
        self.batch_size = batch_size
        self.seed = seed

    def figure_names(self, task: str) -> Collection[str]:
        return self.by_task[task]

    def graded(self, corpus: Corpus) -> Sequence[Example]:
        rows = corpus.splits[self.split]
        return [rows[i] for i in spread(len(rows), self.limit, self.seed)]

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        examples = self.graded(corpus)
        texts = [(example.source, example.target, example.label) for example in examples]

        def predictions_by(batch_size: int) -> list[Any]:
            with untouched(subject.family.model, seed=self.seed):
                return subject.family.predict(texts, batch_size=batch_size)

        predictions = halving(predictions_by, self.batch_size, "measure.task.batch_size")
        figures = {**corpus.grade(predictions, examples), "task_examples": float(len(examples))}
        cut = _cut(subject.family, examples)
        return {**figures, "task_cut_rows": float(cut)} if cut else figures


def _cut(family: Family, examples: Sequence[Example]) -> int:
    """Number of rows whose end the model cannot read or write; language models read on in windows."""
    if family.task == "causal_lm":
        return 0
    read = family.token_ids([example.source for example in examples], truncate=False)
    written = family.token_ids([example.target or "" for example in examples], truncate=False, target=True)
    return sum(max(len(source), len(target)) > family.max_length for source, target in zip(read, written, strict=True))
