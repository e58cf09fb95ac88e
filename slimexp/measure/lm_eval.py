"""Tasks of EleutherAI's lm-evaluation-harness, and two of its kind that need no network (``multiple_choice``)."""

import difflib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any, ClassVar

from slimexp.data.base import HELD_OUT, Corpus, Direction, Split
from slimexp.host import hub
from slimexp.host.out_of_memory import halving
from slimexp.measure.base import Measure, Subject, spread, untouched
from slimexp.measure.multiple_choice import Item, next_line_items, spelling_items
from slimexp.model.base import Family

BUNDLED = {"spelling_choice": "seq2seq", "next_line": "causal_lm"}

_BACKENDS = {"seq2seq": "seq2seq", "causal_lm": "causal"}


class LmEval(Measure):
    """``<task>_<metric>`` and, where the harness reports it, ``<task>_<metric>_stderr``.

    The model is scored in memory. Progress and messages of the harness are hidden unless ``verbose``.

    Args:
        tasks: Names of tasks, of the harness or bundled; ``None`` for the bundled one of the corpus's task.
        split: The held-out split that bundled tasks are built from.
        limit: Largest number of questions per task; ``None`` for all.
        choices: Number of answers per question of the bundled tasks.
        batch_size: Number of answers scored at once.
        num_fewshot: Worked examples before each question (harness tasks only); ``None`` for the task's own number.
        seed: Seed of the choice of rows, wrong answers and worked examples.
        reach_s: Seconds to wait for the hub to answer before going on without network.
        verbose: Whether to show progress and messages of the harness.
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
        """Refuse other models, and load the data of harness tasks, so that a missing file shows up before training.

        Raises:
            ValueError: The model does not serve the tasks, there is no such task, or its data cannot be loaded.
        """
        if remote := [name for name in self._names(task) if name not in BUNDLED]:
            with self._harness(remote):
                _load(remote, {})

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        family = subject.family
        names = self._names(family.task)
        items = {name: self._items(name, corpus, family) for name in names if name in BUNDLED}

        def at(batch_size: int) -> dict[str, float]:
            with untouched(family.model, seed=self.seed), self._harness(names):
                return _figures(self._evaluate(family, _load(names, items), batch_size))

        return halving(at, self.batch_size, "measure.lm_eval.batch_size")

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
            examples = [rows[i] for i in spread(len(rows), self.limit, self.seed)]
            return spelling_items(examples, choices=self.choices, seed=self.seed)
        return next_line_items(
            rows, choices=self.choices, limit=self.limit, longest=family.max_length // 2, seed=self.seed
        )

    def _evaluate(self, family: Family, loaded: Any, batch_size: int) -> Mapping[str, Any]:
        from lm_eval import evaluate

        from slimexp.measure.harness_model import HarnessModel

        for task in loaded["tasks"].values():
            shots = task.get_config("num_fewshot")
            if shots != 0 and self.num_fewshot is not None:  # 0 is a task's own decision and stays
                shots = self.num_fewshot
            task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=self.seed)
        model = HarnessModel(
            family,
            backend=_BACKENDS[family.task],
            batch_size=batch_size,
            **_tokens(family),
        )
        # Not simple_evaluate: that also collects the machine's packages, in seconds of subprocesses.
        results = evaluate(model, loaded, limit=self.limit, log_samples=False)
        assert results is not None
        return results["results"]


def _load(names: Sequence[str], bundled: Mapping[str, list[Item]]) -> Any:
    """The harness's tasks by name.

    Raises:
        ValueError: There is no such task, or its data cannot be loaded.
    """
    manager = _manager(any(name not in bundled for name in names))
    task_names = {*manager.all_tasks, *BUNDLED}
    for name in names:
        if name not in task_names:
            nearest = ", ".join(difflib.get_close_matches(name, task_names, n=3)) or "none is like it"
            raise ValueError(
                f"the harness has no task '{name}' (nearest: {nearest}); `lm-eval ls tasks` lists them all"
            )
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
def _manager(includes_defaults: bool) -> Any:
    """The harness's index of tasks; reading its own 14,000 takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=includes_defaults)


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


def _tokens(family: Family) -> dict[str, Any]:
    """Options of the harness: a causal context must not end in an end token, which some tokenizers append."""
    ids = family.tokenizer("a")["input_ids"]
    ends_texts = bool(ids) and ids[-1] == family.tokenizer.eos_token_id
    return {"add_bos_token": False} if family.task == "causal_lm" and ends_texts else {}


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
