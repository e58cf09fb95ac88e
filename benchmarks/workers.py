"""Runs side by side, on one GPU after the other."""

import itertools
import multiprocessing
import multiprocessing.queues
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait
from queue import Queue
from typing import TypeVar

from slimexp.sweeper.worker import end_with_children

VISIBLE = "CUDA_VISIBLE_DEVICES"

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def gpus() -> list[str]:
    """Names of the GPUs that this process may use, found without opening one: what opens it keeps memory there."""
    if visible := os.environ.get(VISIBLE):
        return visible.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def processes(workers: int) -> ProcessPoolExecutor:
    """Warm processes, each of which sees one GPU where there are any; several share one where they are more."""
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for gpu in itertools.islice(itertools.cycle(gpus() or [""]), workers):
        free.put(gpu)
    return ProcessPoolExecutor(workers, context, initializer=_take, initargs=(free,))


def each(task: Callable[[Task, Mapping[str, str]], Answer], of: Sequence[Task], jobs: int) -> list[Answer]:
    """Answers of tasks that start programs, up to ``jobs`` at a time.

    Args:
        task: Takes one of ``of``, and what its program finds in its environment: the name of a GPU where there are any.
        of: The tasks.
        jobs: How many run at a time.
    """
    free: Queue[str] = Queue()
    for gpu in itertools.islice(itertools.cycle(gpus() or [""]), jobs):
        free.put(gpu)

    def one(item: Task) -> Answer:
        gpu = free.get()
        try:
            return task(item, {VISIBLE: gpu} if gpu else {})
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, of))


def _take(free: "multiprocessing.queues.Queue[str]") -> None:
    """Begin a process: on a GPU of its own, until the program that started it ends, however it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu := free.get():
        os.environ[VISIBLE] = gpu


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    end_with_children()
