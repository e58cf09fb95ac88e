"""The base class of measures: numbers about a finished model, beside its dense baseline where that matters."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from slimexp.data.base import Corpus, Direction, Example
from slimexp.host.progress import working
from slimexp.measure.score_store import ScoreStore
from slimexp.model.base import Family
from slimexp.model.execution import kernel
from slimexp.model.serving import served, stored_type, weights_digest
from slimexp.record.schema import PAIRED


@dataclass(frozen=True)
class Subject:
    """A finished model as a user would deploy it.

    Attributes:
        family: The model, reloaded from ``folder`` (never the training-time simulation).
        folder: The model's folder.
        store: Results of tests by the model's weights; ``None`` where none are kept.
    """

    family: Family
    folder: Path
    store: ScoreStore | None = None

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens that the model serves."""
        return self.family.max_length

    @cached_property
    def weights(self) -> str:
        """Digest of the deployable model, the same in every folder."""
        return weights_digest(self.folder)

    @cached_property
    def shipped(self) -> "Subject":
        """The model that speed and memory are measured of: on a GPU, in the type that its file holds.

        Quality is graded in float32 on every device. A GPU is made for 16 bits, and a model that ships in them runs in
        them: it is loaded once more. On a CPU, and where the file holds float32, nothing changes.
        """
        dtype = stored_type(self.folder)
        if self.device.type != "cuda" or dtype.itemsize >= self.graded_in.itemsize:
            return self
        return Subject(self.loaded(dtype), self.folder)

    @property
    def device(self) -> torch.device:
        """The device that it is on."""
        return self.family.device

    @property
    def graded_in(self) -> torch.dtype:
        """Type of the floats in which its quality is graded."""
        return self.family.model.dtype

    def loaded(self, dtype: torch.dtype) -> Family:
        """The model once more, in another type of floats."""
        return served(self.folder, self.family.task, self.family.max_length, device=self.device, dtype=dtype)

    @property
    def kernel(self) -> str:
        """Label of what executes in the linear layers where speed is measured, and where quality is if that differs."""
        timed = vars(self).get("shipped", self)
        label = kernel(timed.family.model, self.folder)
        if timed is self or "family" not in vars(self):
            return label
        return f"{label}; graded on {kernel(self.family.model, self.folder)}"


class Stored(Subject):
    """A finished model in a folder, which is loaded in the types that measures ask for.

    Args:
        folder: The model's folder.
        load: Loads it, its packed numbers as they are, given the type of all others.
        device: Device that it is loaded on.
        max_length: Longest sequence in tokens that the model serves.
        store: Results of tests by the model's weights; ``None`` where none are kept.
    """

    _load: Callable[[torch.dtype], Family]
    _device: torch.device
    _max_length: int

    def __init__(
        self,
        folder: Path,
        load: Callable[[torch.dtype], Family],
        device: torch.device,
        *,
        max_length: int,
        store: ScoreStore | None = None,
    ) -> None:
        vars(self).update(folder=folder, store=store, _load=load, _device=device, _max_length=max_length)

    @property
    def max_length(self) -> int:
        return self._max_length

    @cached_property
    def family(self) -> Family:
        return self.loaded(self.graded_in)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def graded_in(self) -> torch.dtype:
        return torch.float32

    def loaded(self, dtype: torch.dtype) -> Family:
        return self._load(dtype)


class Measure(ABC):
    """Numbers about one model.

    Attributes:
        directions: Name of a figure, or a pattern of names (``*_acc``) -> the direction that is better. Figures
            without one (counts of examples, threads, the shape measured) are left out.
        compares: Whether figures depend on the baseline.
    """

    directions: ClassVar[Mapping[str, Direction]] = {}
    compares: ClassVar[bool] = False

    def validate(self, task: str) -> None:  # noqa: B027 (most measures fit every task)
        """Raise ``ValueError`` if models of this corpus task cannot be measured so; called before training."""

    def figure_names(self, task: str) -> Collection[str]:
        """Names of the figures, or patterns of names, that the measure may return for models of this corpus task."""
        return self.directions

    def graded(self, corpus: Corpus) -> Sequence[Example]:
        """Rows that the corpus's headline is measured on; empty if this measure does not report the headline."""
        return ()

    def adapt(self, corpus: Corpus, *, on_cpu: bool) -> Mapping[str, Any]:
        """Choose values for settings that are ``auto``, by the text and the machine and by nothing of a model.

        Called before anything is measured, and once for all models of a command.

        Args:
            corpus: Held-out text, of which only the ``validation`` and ``test`` splits may be read.
            on_cpu: Whether models are measured on a CPU.

        Returns:
            Name of a setting that was ``auto`` -> the value that was chosen for it.
        """
        return {}

    @abstractmethod
    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        """Measure ``subject`` and leave it as it was: modes, gradients, device, dtype, random states.

        Args:
            subject: The model to measure, on the device it runs on, in eval mode.
            baseline: The dense model the run started from; may be ``subject`` itself.
            corpus: Held-out text. Only its ``validation`` and ``test`` splits may be read.

        Returns:
            ``{"name_unit": value}``: flat, finite floats, e.g. ``disk_mb``, ``latency_p50_ms``.
        """


def run(measures: Mapping[str, Measure], subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
    """All figures of all measures, in order.

    Args:
        measures: Name in the config -> measure.
        subject: The model to measure.
        baseline: The dense model the run started from.
        corpus: Held-out text.

    Raises:
        ValueError: Two measures return a figure of the same name, or a figure is not a finite number.
    """
    figures: dict[str, float] = {}
    owner: dict[str, str] = {}
    for name, measure in measures.items():
        with working(f"measuring {name}"):
            measured = measure.measure(subject, baseline, corpus)
        for key, value in measured.items():
            if key in owner:
                raise ValueError(f"measures '{owner[key]}' and '{name}' both give '{key}': drop one of them")
            if not math.isfinite(value):
                raise ValueError(f"measure '{name}' gave {key} = {value}: only finite numbers can be compared")
            owner[key] = name
            figures[key] = float(value)
    return figures


def trivial(measures: Iterable[Measure], corpus: Corpus) -> float:
    """Headline of the best guess without a model, on the rows that models are graded on."""
    rows = next((rows for measure in measures if (rows := measure.graded(corpus))), corpus.splits["test"])
    return corpus.trivial(rows)


def direction(key: str, measures: Iterable[Measure | type[Measure]]) -> Direction | None:
    """The direction in which the figure ``key`` is better, by the first of ``measures`` that has one; else ``None``."""
    ends = (end for end in PAIRED if key.endswith(end))  # of a difference: what is better for the one is for the other
    figure = key.removesuffix(next(ends, ""))
    for measure in measures:
        for pattern, better in measure.directions.items():
            if fnmatchcase(figure, pattern):
                return better
    return None


def directions(figures: Iterable[str], measures: Collection[Measure]) -> dict[str, Direction]:
    """Figure -> the direction that is better, of the figures that have one."""
    ways = {key: direction(key, measures) for key in figures}
    return {key: way for key, way in ways.items() if way is not None}


def spread(count: int, limit: int | None, seed: int) -> Sequence[int]:
    """A fixed sample of ``range(count)``: one random index out of each of ``limit`` equal stretches.

    Rows of a corpus lie module by module, so a sample that is spread evenly covers them all.

    Args:
        count: Number of rows.
        limit: Size of the sample; ``None``, or more than ``count``, for all rows.
        seed: Seed of the choice within the stretches.
    """
    if limit is None or limit >= count:
        return range(count)
    chance = random.Random(seed)
    return [chance.randrange(i * count // limit, (i + 1) * count // limit) for i in range(limit)]


@contextmanager
def untouched(*models: nn.Module, seed: int) -> Iterator[None]:
    """Evaluate ``models`` in eval mode, without gradients, with seeded random states; all are restored afterwards."""
    training = [(module, module.training) for model in models for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.callback(_put_back, training, states)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        for model in models:
            model.eval()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


def _put_back(training: Iterable[tuple[nn.Module, bool]], states: tuple) -> None:
    for module, was in training:
        module.training = was
    random.setstate(states[0])
    np.random.set_state(states[1])
