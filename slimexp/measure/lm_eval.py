"""Tasks of EleutherAI's lm-evaluation-harness, and two of its kind that need no network (``multiple_choice``)."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from itertools import islice
from typing import Any, ClassVar

from slimexp.data.base import HELD_OUT, Corpus, Direction, Split
from slimexp.data.rows import Scores, question_digest
from slimexp.host import hub
from slimexp.host.out_of_memory import halving
from slimexp.measure.base import Subject, spread, untouched
from slimexp.measure.by_question import ByQuestion
from slimexp.measure.harness_tasks import BUNDLED, Needed, check, load, missing, scores_of
from slimexp.measure.multiple_choice import Item, next_line_items, spelling_items
from slimexp.model.base import Family

_BACKENDS = {"seq2seq": "seq2seq", "causal_lm": "causal"}


class LmEval(ByQuestion):
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
        counts = (("limit", limit, 2), ("choices", choices, 2), ("batch_size", batch_size, 1))
        for name, value, least in (*counts, ("num_fewshot", num_fewshot, 0)):
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
        self._remote: dict[str, Mapping[str, Any]] = {}

    def validate(self, task: str) -> None:
        """Refuse other models, and get the data of harness tasks, so that what is missing shows up before training.

        Raises:
            ValueError: The model does not serve the tasks, there is no such task, or its data cannot be had.
        """
        names = self._names(task)
        bundled, remote = ([name for name in names if (name in BUNDLED) is own] for own in (True, False))
        if self.num_fewshot and bundled:
            raise ValueError(
                f"num_fewshot={self.num_fewshot}: the bundled task {bundled[0]} has no worked examples; leave it at "
                "null, or name tasks of the harness alone (tasks=[arc_easy])"
            )
        if not remote:
            return
        with self._harness(()):
            check(remote)
            absent = missing(remote)
        if absent and not hub.answers(self.reach_s):
            raise ValueError(_offline(absent))
        if absent:
            print(f"lm_eval: to be downloaded now: {'; '.join(map(str, absent))}", flush=True)
        with self._harness(remote if absent else ()):
            load(remote, {})

    def tests(self, subject: Subject, corpus: Corpus) -> Mapping[str, Mapping[str, Any]]:
        settings = {"seed": self.seed, "max_length": subject.max_length, "task": corpus.task}
        return {name: {**settings, **self._about(name, subject, corpus)} for name in self._names(corpus.task)}

    def results(self, names: Sequence[str], subject: Subject, corpus: Corpus) -> Mapping[str, Scores]:
        family = subject.family

        def at(batch_size: int) -> dict[str, Scores]:
            with untouched(family.model, seed=self.seed), self._harness(names):
                return {
                    name: scores_of(self._evaluate(family, self._loaded(name, subject, corpus), batch_size))
                    for name in names
                }

        return halving(at, self.batch_size, "measure.lm_eval.batch_size")

    def _about(self, name: str, subject: Subject, corpus: Corpus) -> Mapping[str, Any]:
        """What tells a task from others of its name: its questions, and of the harness's own its version and shots."""
        if name in BUNDLED:
            return {"questions": question_digest(self._items(name, corpus, subject.max_length))}
        if name not in self._remote:  # nothing of it depends on the model
            with self._harness([name]):
                tasks = load([name], {})["tasks"]
            self._remote[name] = {
                "versions": {task: str(one.VERSION) for task, one in tasks.items()},
                "questions": {
                    task: question_digest(list(islice(one.eval_docs, self.limit))) for task, one in tasks.items()
                },
                "limit": self.limit,
                "num_fewshot": self.num_fewshot,
            }
        return self._remote[name]

    def _loaded(self, name: str, subject: Subject, corpus: Corpus) -> Any:
        return load([name], {name: self._items(name, corpus, subject.max_length)} if name in BUNDLED else {})

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

    def _items(self, name: str, corpus: Corpus, max_length: int) -> list[Item]:
        rows = corpus.splits[self.split]
        if name == "spelling_choice":
            examples = [rows[i] for i in spread(len(rows), self.limit, self.seed)]
            return spelling_items(examples, choices=self.choices, seed=self.seed)
        return next_line_items(rows, choices=self.choices, limit=self.limit, longest=max_length // 2, seed=self.seed)

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
        results = evaluate(model, loaded, limit=self.limit, log_samples=True)
        assert results is not None
        return results


def _offline(absent: Sequence[Needed]) -> str:
    """Which data cannot be had, of which tasks, and the way out."""
    return (
        f"lm_eval: {hub.unreachable()}, and this is not on this machine: {'; '.join(map(str, absent))}. Where there is "
        "a network, run the same command once, copy that machine's HF_HOME folder here and set HF_HOME to it; or "
        f"choose other tasks, of which {', '.join(BUNDLED)} need no download"
    )


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
