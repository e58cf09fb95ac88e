"""Quality of a model's predictions on held-out text."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

from slimexp.data.base import HELD_OUT, Corpus, Direction, Example, Split
from slimexp.data.rows import Scores, question_digest
from slimexp.host.out_of_memory import halving
from slimexp.measure.base import Subject, spread, untouched
from slimexp.measure.by_question import ByQuestion
from slimexp.model.base import Family

ON_CPU = 200_000  # characters, some 50,000 tokens: two minutes of a model of 135 M parameters on two cores


class Task(ByQuestion):
    """The corpus's own metrics of the model's predictions; ``task_examples`` is the number of rows.

    ``task_split_rows``, the number of rows in the split, is reported where fewer are predicted, and
    ``task_cut_rows``, the number of rows longer than the model's ``max_length``, where there are any.

    Args:
        split: ``validation`` or ``test``.
        limit: Number of rows to predict, spread evenly over the split; ``None`` for all. ``auto``: on a CPU as many as
            hold ``ON_CPU`` characters, elsewhere all; the same rows for every model, whatever its size and tokens.
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

    def __init__(self, *, split: Split, limit: int | Literal["auto"] | None, batch_size: int, seed: int) -> None:
        if split not in HELD_OUT:
            raise ValueError(f"split must be one of {', '.join(HELD_OUT)} (training text is no test), got '{split}'")
        if (isinstance(limit, str) and limit != "auto") or (isinstance(limit, int) and limit < 1):
            raise ValueError(f"limit must be >= 1, auto, or null for all rows, got {limit}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        self.split = split
        self.limit = None if limit == "auto" else limit
        self._chooses = limit == "auto"
        self.batch_size = batch_size
        self.seed = seed

    def figure_names(self, task: str) -> Collection[str]:
        return self.by_task[task]

    def adapt(self, corpus: Corpus, *, on_cpu: bool) -> Mapping[str, Any]:
        if not self._chooses:
            return {}
        self.limit = _rows_on_cpu(corpus.splits[self.split]) if on_cpu else None
        return {"limit": self.limit}

    def graded(self, corpus: Corpus) -> Sequence[Example]:
        rows = corpus.splits[self.split]
        return [rows[i] for i in spread(len(rows), self.limit, self.seed)]

    def tests(self, subject: Subject, corpus: Corpus) -> Mapping[str, Mapping[str, Any]]:
        questions = [(example.source, example.target, example.label) for example in self.graded(corpus)]
        rows = len(corpus.splits[self.split])
        settings = {"questions": question_digest([questions, corpus.labels, rows]), "max_length": subject.max_length}
        return {"task": settings | {"task": corpus.task}}

    def results(self, names: Sequence[str], subject: Subject, corpus: Corpus) -> Mapping[str, Scores]:
        examples = self.graded(corpus)
        texts = [(example.source, example.target, example.label) for example in examples]

        def predictions_by(batch_size: int) -> list[Any]:
            with untouched(subject.family.model, seed=self.seed):
                return subject.family.predict(texts, batch_size=batch_size)

        predictions = halving(predictions_by, self.batch_size, "measure.task.batch_size")
        figures = {**corpus.grade(predictions, examples), "task_examples": float(len(examples))}
        if len(examples) < (rows := len(corpus.splits[self.split])):
            figures["task_split_rows"] = float(rows)
        if cut := _cut(subject.family, examples):
            figures["task_cut_rows"] = float(cut)
        return {"task": Scores(figures, dict(corpus.by_row(predictions, examples)))}


def _rows_on_cpu(rows: Sequence[Example]) -> int | None:
    """Number of rows that hold ``ON_CPU`` characters on average; ``None`` where all of them hold no more."""
    characters = sum(len(row.source) + len(row.target or "") for row in rows)
    return None if characters <= ON_CPU else max(2, round(ON_CPU * len(rows) / characters))  # two have a standard error


def _cut(family: Family, examples: Sequence[Example]) -> int:
    """Number of rows whose end the model cannot read or write; language models read on in windows."""
    if family.task == "causal_lm":
        return 0
    read = family.token_ids([example.source for example in examples], truncate=False)
    written = family.token_ids([example.target or "" for example in examples], truncate=False, target=True)
    return sum(max(len(source), len(target)) > family.max_length for source, target in zip(read, written, strict=True))
