"""Tasks of lm-evaluation-harness by name: their data, looked up before they are needed, and their results by question.

The harness is imported when a task is asked for.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from slimexp.data.rows import Rows, Scores, question_digest
from slimexp.file.bounded import one_line
from slimexp.host import hub
from slimexp.measure.multiple_choice import Item

BUNDLED = {"spelling_choice": "seq2seq", "next_line": "causal_lm"}

_ABSENT = (OSError, ValueError, ImportError)  # what datasets raises when it finds no data, or no network


@dataclass(frozen=True)
class Needed:
    """Data that tasks read.

    Attributes:
        dataset: Id on the hub, or name of a loader, with the name of its part.
        options: Arguments of ``datasets.load_dataset``.
        tasks: Tasks that read it.
    """

    dataset: str
    options: Mapping[str, Any]
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.tasks[:3]) + (f" and {len(self.tasks) - 3} more" if len(self.tasks) > 3 else "")
        return f"{self.dataset} for {shown}"


def check(names: Sequence[str]) -> None:
    """Refuse names that the harness does not know.

    Raises:
        ValueError: There is no such task.
    """
    task_names = {*_manager(True).all_tasks, *BUNDLED}
    for name in names:
        if name not in task_names:
            nearest = ", ".join(difflib.get_close_matches(name, task_names, n=3)) or "none is like it"
            raise ValueError(
                f"the harness has no task '{name}' (nearest: {nearest}); `lm-eval ls tasks` lists them all"
            )


def missing(names: Sequence[str]) -> list[Needed]:
    """Data of tasks that are neither in the local cache of datasets nor in local files; nothing is downloaded."""
    with hub.offline():
        return [needed for needed in _needed(names) if not _is_here(needed)]


def load(names: Sequence[str], bundled: Mapping[str, list[Item]]) -> Any:
    """The harness's tasks by name.

    Args:
        names: Names of tasks, groups and tags of the harness, and of those in ``bundled``.
        bundled: Questions of tasks that are made here.

    Raises:
        ValueError: There is no such task, or its data cannot be loaded.
    """
    remote = [name for name in names if name not in bundled]
    if remote:
        check(remote)
    try:
        return _manager(bool(remote)).load([inline(name, bundled[name]) if name in bundled else name for name in names])
    except _ABSENT as error:
        raise ValueError(
            f"lm_eval cannot load {', '.join(remote)} ({type(error).__name__}: {one_line(error)}): data that are not "
            f"public need `hf auth login`; other tasks are listed by `lm-eval ls tasks`, and {', '.join(BUNDLED)} "
            "need none"
        ) from error


def inline(name: str, items: list[Item]) -> dict[str, Any]:
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


def scores_of(evaluated: Mapping[str, Any]) -> Scores:
    """What the harness returns as figures and rows.

    ``{"arc_easy": {"acc,none": 0.3, "acc_stderr,none": 0.01}}`` -> ``{"arc_easy_acc": 0.3, ...}``. A figure has rows
    where it follows from its questions as a mean, a ratio of sums, or e to the power of one, and of a group where it is
    the mean over all questions of its tasks.

    Raises:
        ValueError: There is no figure.
    """
    figures = {}
    rows: dict[str, Rows] = {}
    results, subtasks = evaluated["results"], evaluated.get("group_subtasks", {})
    for task in sorted(results, key=lambda name: len(_leaves(name, subtasks))):  # tasks before their groups
        for key, value in results[task].items():
            metric, _, filtered = key.partition(",")
            if filtered and isinstance(value, int | float) and math.isfinite(value):
                name = _figure_name(task, metric, filtered)
                figures[name] = float(value)
                parts = [_figure_name(leaf, metric, filtered) for leaf in _leaves(task, subtasks)]
                samples = evaluated.get("samples", {}).get(task, ())
                if (found := _rows(samples, metric, filtered, value) or _joined(parts, rows, value)) is not None:
                    rows[name] = found
    if not figures:
        raise ValueError(f"the harness gave no figure for {', '.join(results)}")
    return Scores(figures, rows)


def _needed(names: Sequence[str]) -> list[Needed]:
    """Data of tasks by what the index says; what a task makes by code of its own is not known before it is loaded."""
    found: dict[str, Needed] = {}
    for name in names:
        for entry in _entries(name):
            cfg = entry.cfg or {}
            if not (path := cfg.get("dataset_path")):
                continue
            part, more = cfg.get("dataset_name"), cfg.get("dataset_kwargs") or {}
            options = {"path": path, "name": part, **{k: v for k, v in more.items() if k != "trust_remote_code"}}
            key = json.dumps(options, sort_keys=True, default=str)
            known = found.get(key) or Needed(f"{path} ({part})" if part else path, options, ())
            found[key] = replace(known, tasks=(*known.tasks, entry.name))
    return list(found.values())


def _entries(name: str) -> Iterator[Any]:
    """The harness's entries of the single tasks in a task, group or tag."""
    index = _manager(True).task_index
    if (entry := index.get(name)) is None:
        return
    members = entry.tags if entry.kind.name == "TAG" else ()
    if entry.kind.name == "GROUP":
        listed = (entry.cfg or {}).get("task") or ()
        members = [item if isinstance(item, str) else item.get("task") or item.get("group") for item in listed]
    if not members:
        yield entry
    for member in sorted(member for member in members if isinstance(member, str) and member != name):
        yield from _entries(member)


def _is_here(needed: Needed) -> bool:
    from datasets import load_dataset

    try:
        load_dataset(**needed.options)
    except _ABSENT:
        return False
    return True


@cache
def _manager(includes_defaults: bool) -> Any:
    """The harness's index of tasks; reading its own 14,000 takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=includes_defaults)


def _figure_name(task: str, metric: str, filtered: str) -> str:
    return f"{task}_{metric}" + ("" if filtered == "none" else f"_{filtered}")


def _leaves(name: str, subtasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Single tasks below a group, at any depth; of a task itself none."""
    below = [child for child in subtasks.get(name, ()) if child != name]
    return [leaf for child in below for leaf in _leaves(child, subtasks) or [child]]


def _rows(samples: Sequence[Mapping[str, Any]], metric: str, filtered: str, figure: float) -> Rows | None:
    """A figure question by question, in that of the known forms which gives the figure."""
    own = [sample for sample in samples if sample["filter"] == filtered and metric in sample]
    if not own:
        return None
    try:
        values = np.array([sample[metric] for sample in own], dtype=float)
    except (TypeError, ValueError):  # lists of predictions and labels, which only the whole task grades
        return None
    questions = np.array([question_digest(sample["doc_hash"]) for sample in own], dtype=np.uint64)
    if values.shape == (len(own), 2):  # log-likelihood and number of words or bytes
        tops, bottoms = values[:, 0], values[:, 1]
        forms = [Rows(questions, -tops / math.log(2), bottoms), Rows(questions, -tops, bottoms, exponential=True)]
    elif values.ndim == 1:
        ones = np.ones(len(own))
        forms = [Rows(questions, values, ones), Rows(questions, -values, ones, exponential=True)]
    else:
        return None
    return _first_of(forms, figure)


def _joined(parts: Sequence[str], rows: Mapping[str, Rows], figure: float) -> Rows | None:
    """The figure of a group over the questions of all its tasks."""
    own = [rows[part] for part in parts if part in rows]
    if not own or len(own) < len(parts) or any(row.exponential for row in own):
        return None
    questions = np.concatenate([row.questions for row in own])
    tops, bottoms = np.concatenate([row.tops for row in own]), np.concatenate([row.bottoms for row in own])
    return _first_of([Rows(questions, tops, bottoms)], figure)


def _first_of(forms: Sequence[Rows], figure: float) -> Rows | None:
    for form in forms:
        finite = np.isfinite(form.tops).all() and np.isfinite(form.bottoms).all() and form.bottoms.sum() > 0
        if finite and math.isclose(form.figure, figure, rel_tol=1e-9, abs_tol=1e-12):
            return form
    return None
