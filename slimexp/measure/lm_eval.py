"""Tasks of EleutherAI's lm-evaluation-harness, and two of its kind that need no network.

The bundled tasks are multiple choice by likelihood, built from the corpus's held-out text:

- ``spelling_choice`` (seq2seq): which of N sentences corrects the source? The wrong ones are other
  misspellings of the same sentence, each with one letter replaced, so all are of like length.
- ``next_line`` (causal LM): which of N lines follows the passage? The wrong ones are lines from elsewhere,
  indented like the right one.
"""

import difflib
import io
import logging
import math
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any, ClassVar

from slimexp.data.base import HELD_OUT, Corpus, Direction, Example, Split
from slimexp.host import hub
from slimexp.measure.base import Measure, Subject, spread, untouched
from slimexp.model.base import Family

BUNDLED = {"spelling_choice": "seq2seq", "next_line": "causal_lm"}

_BACKENDS = {"seq2seq": "seq2seq", "causal_lm": "causal"}
_SHORTEST_LINE = 8  # characters; shorter lines ("else:", ")") follow almost anything
_CONTEXT_LINES = 3  # least lines before the one to be guessed

Item = dict[str, Any]  # context, choices, answer


class LmEval(Measure):
    """``<task>_<metric>`` and, where the harness gives it, ``<task>_<metric>_stderr``.

    The model is scored in memory. Progress and messages of the harness are kept back unless ``verbose``.

    Args:
        tasks: Names of tasks, of the harness or bundled; ``None`` for the bundled one of the corpus's task.
        split: The held-out split that bundled tasks are built from.
        limit: Most questions per task; ``None`` for all.
        choices: Answers per question of the bundled tasks.
        batch_size: Answers scored at once.
        num_fewshot: Worked examples before each question (harness tasks only); ``None`` for what the task says.
        seed: Of the choice of rows, wrong answers and worked examples.
        reach_s: How long to wait for the hub to answer before going on without network.
        verbose: Whether to let the harness speak.
    """

    directions: ClassVar[Mapping[str, Direction]] = {
        "*_acc": "max",
        "*_acc_norm": "max",
        "*_acc_all": "max",
        "*_exact_match*": "max",
        "*_em": "max",
        "*_f1": "max",
        "*_mcc": "max",
        "*_bleu": "max",
        "*_chrf": "max",
        "*_rouge*": "max",
        "*_pass@*": "max",
        "*_perplexity": "min",
        "*_bits_per_byte": "min",
        "*_brier_score": "min",
        "*_ter": "min",
    }

    def __init__(
        self,
        *,
        tasks: Sequence[str] | None,
        split: Split,
        limit: int | None,
        choices: int,
        batch_size: int,
        num_fewshot: int | None,
        seed: int,
        reach_s: float,
        verbose: bool,
    ) -> None:
        if tasks is not None and not tasks:
            raise ValueError("tasks must name a task, or be null for the bundled one of the corpus")
        if split not in HELD_OUT:
            raise ValueError(f"split must be one of {', '.join(HELD_OUT)} (training text is no test), got '{split}'")
        for name, value, least in (("limit", limit, 2), ("choices", choices, 2), ("batch_size", batch_size, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        self.tasks = tasks
        self.split = split
        self.limit = limit
        self.choices = choices
        self.batch_size = batch_size
        self.num_fewshot = num_fewshot
        self.seed = seed
        if reach_s <= 0:
            raise ValueError(f"reach_s must be > 0, got {reach_s}")
        self.reach_s = reach_s
        self.verbose = verbose

    def validate(self, task: str) -> None:
        """Also loads the data of harness tasks, so that a missing file is known before training."""
        if named := [name for name in self._names(task) if name not in BUNDLED]:
            with self._harness(named):
                _load(named, {})

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        family = subject.family
        names = self._names(family.task)
        items = {name: self._items(name, corpus, family) for name in names if name in BUNDLED}
        with untouched(family.model, seed=self.seed), self._harness(names):
            return _figures(self._evaluate(family, _load(names, items)))

    def _names(self, task: str) -> Sequence[str]:
        if task not in _BACKENDS:
            raise ValueError(f"lm_eval scores language models, and this one is for {task}: drop measure.lm_eval")
        names = self.tasks or [name for name, served in BUNDLED.items() if served == task]
        for name in names:
            if (served := BUNDLED.get(name, task)) != task:
                raise ValueError(f"the bundled task '{name}' is for {served} models, this one is for {task}")
        return names

    @contextmanager
    def _harness(self, names: Sequence[str]) -> Iterator[None]:
        """Surroundings in which the harness neither chatters, nor hangs, nor asks an unreachable hub."""
        from accelerate.utils import patch_environment

        with ExitStack() as stack:
            stack.enter_context(nullcontext() if self.verbose else _quiet())
            # Its bootstrap forks a pool of processes, which can hang beside torch's threads; `bootstrap_stderr` has no
            # argument for it.
            stack.enter_context(patch_environment(DISABLE_MULTIPROC=1))
            if all(name in BUNDLED for name in names) or not hub.answers(self.reach_s):
                stack.enter_context(hub.offline())
            yield

    def _items(self, name: str, corpus: Corpus, family: Family) -> list[Item]:
        rows = corpus.splits[self.split]
        if name == "spelling_choice":
            taken = [rows[i] for i in spread(len(rows), self.limit, self.seed)]
            return spelling_items(taken, choices=self.choices, seed=self.seed)
        return next_line_items(
            rows, choices=self.choices, limit=self.limit, longest=family.max_length // 2, seed=self.seed
        )

    def _evaluate(self, family: Family, loaded: Any) -> Mapping[str, Any]:
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        for task in loaded["tasks"].values():
            shots = task.get_config("num_fewshot")
            if shots != 0 and self.num_fewshot is not None:  # 0 is a task's own decision and stays
                shots = self.num_fewshot
            task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=self.seed)
        model = HFLM(
            pretrained=family.model,
            trust_remote_code=False,
            backend=_BACKENDS[family.task],
            tokenizer=family.tokenizer,
            max_length=family.max_length,
            batch_size=self.batch_size,
            # A causal context must not end in an end token, which some tokenizers append.
            add_bos_token=False if family.task == "causal_lm" and _ends_texts(family) else None,
        )
        # Not simple_evaluate: that also collects the machine's packages, in seconds of subprocesses.
        results = evaluate(model, loaded, limit=self.limit, log_samples=False)
        assert results is not None
        return results["results"]


def spelling_items(examples: Sequence[Example], *, choices: int, seed: int) -> list[Item]:
    """One question per example: the source, its target among misspellings of it.

    Raises:
        ValueError: A sentence has too few letters to be misspelt in enough ways.
    """
    items = []
    for i, example in enumerate(examples):
        right = example.target or ""
        chance = random.Random(f"{seed} {i} {right}")
        wrong: set[str] = set()
        for _ in range(100 * choices):
            if len(wrong) == choices - 1:
                break
            wrong |= {_misspell(right, chance)} - {right, example.source}
        else:
            raise ValueError(f"'{right}' has too few letters for {choices - 1} misspellings: lower choices")
        items.append(_item(example.source, right, sorted(wrong), chance))
    return items


def next_line_items(rows: Sequence[Example], *, choices: int, limit: int | None, longest: int, seed: int) -> list[Item]:
    """One question per row that has a line to guess, up to ``limit``, spread evenly.

    Args:
        rows: Passages of several lines.
        choices: Answers per question.
        limit: Most questions; ``None`` for all.
        longest: Most bytes of an answer.
        seed: Of rows, lines and wrong answers.

    Raises:
        ValueError: Too few rows have a line to guess.
    """
    guessable = [(row.source.splitlines(), _guessable(row.source, longest)) for row in rows]
    guessable = [(lines, places) for lines, places in guessable if places]
    if len(guessable) < choices:
        raise ValueError(
            f"next_line needs {choices} passages with a line of {_SHORTEST_LINE} characters to {longest} bytes after "
            f"{_CONTEXT_LINES} others, and the split has {len(guessable)}: it is for text of several lines"
        )
    items = []
    for i in spread(len(guessable), limit, seed):
        lines, places = guessable[i]
        chance = random.Random(f"{seed} {i}")
        at = chance.choice(places)
        right = lines[at]
        indent = right[: len(right) - len(right.lstrip())]
        wrong: set[str] = set()
        for j in chance.sample(range(len(guessable)), len(guessable)):
            if len(wrong) < choices - 1 and j != i:
                elsewhere, others = guessable[j]
                wrong |= {indent + elsewhere[chance.choice(others)].strip()} - {right}
        if len(wrong) == choices - 1:
            items.append(_item("\n".join(lines[:at]) + "\n", right, sorted(wrong), chance))
    return items


def _guessable(text: str, longest: int) -> list[int]:
    """Numbers of the lines that can be asked for. The last line may be cut short and is left out."""
    lines = text.splitlines()
    return [
        i
        for i in range(_CONTEXT_LINES, len(lines) - 1)
        if len(lines[i].strip()) >= _SHORTEST_LINE and len(lines[i].encode()) <= longest and "".join(lines[:i]).strip()
    ]


def _misspell(text: str, chance: random.Random) -> str:
    """``text`` with one letter replaced by another of the same case."""
    letters = [i for i, character in enumerate(text) if character in string.ascii_letters]
    if not letters:
        return text
    at = chance.choice(letters)
    typed = chance.choice(string.ascii_uppercase if text[at].isupper() else string.ascii_lowercase)
    return text[:at] + typed + text[at + 1 :]


def _item(context: str, right: str, wrong: Sequence[str], chance: random.Random) -> Item:
    choices = [right, *wrong]
    chance.shuffle(choices)
    return {"context": context, "choices": choices, "answer": choices.index(right)}


def _load(names: Sequence[str], bundled: Mapping[str, list[Item]]) -> Any:
    """The harness's tasks by name.

    Raises:
        ValueError: There is no such task, or its data cannot be had.
    """
    manager = _manager(any(name not in bundled for name in names))
    known = {*manager.all_tasks, *BUNDLED}
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none is like it"
            raise ValueError(f"the harness has no task '{name}' (nearest: {near}); `lm-eval ls tasks` lists them all")
    try:
        return manager.load([_inline(name, bundled[name]) if name in bundled else name for name in names])
    except (OSError, ValueError, ImportError) as error:  # what datasets raises when it finds no data, or no network
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"the data of {', '.join(name for name in names if name not in bundled)} cannot be had "
            f"({type(error).__name__}: {reason}). Offline: run the task once where there is a network, copy that "
            f"machine's HF_HOME folder here and set HF_HOME to it; or choose a bundled task: {', '.join(BUNDLED)}"
        ) from error


@cache
def _manager(named: bool) -> Any:
    """The harness's index of tasks; reading the 14,000 named ones takes it seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=named)


def _inline(name: str, items: list[Item]) -> dict[str, Any]:
    """A harness task over ``items`` in memory: no file, no cache, no network."""
    from datasets import Dataset

    data = {"test": Dataset.from_list(items)}
    return {
        "task": name,
        "custom_dataset": lambda **_: data,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def _figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``{"arc_easy": {"acc,none": 0.3, "acc_stderr,none": 0.01}}`` -> ``{"arc_easy_acc": 0.3, ...}``."""
    figures = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if filtered and isinstance(value, int | float) and math.isfinite(value):
                suffix = "" if filtered == "none" else f"_{filtered}"
                figures[f"{task}_{metric}{suffix}"] = float(value)
    if not figures:
        raise ValueError(f"the harness gave no figure for {', '.join(results)}")
    return figures


def _ends_texts(family: Family) -> bool:
    ids = family.tokenizer("a")["input_ids"]
    return bool(ids) and ids[-1] == family.tokenizer.eos_token_id


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness without its messages, prints and progress bars; exceptions pass."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
