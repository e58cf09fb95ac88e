"""Batches in parts, one after the other, where a whole one does not fit in memory.

Losses are quotients of sums (``Ratio``): the numerators of the parts are divided by the denominators of the whole
batch, so that their gradients add up to that of the batch.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from slimexp.completion.base import Completion
from slimexp.host import out_of_memory, process_group
from slimexp.model.base import POSITIONS, REAL, Batch
from slimexp.technique.objective import Objective
from slimexp.technique.sharding import Distributed
from slimexp.technique.step_graphs import StepGraphs

T = TypeVar("T")
Loss = tuple[Tensor, dict[str, Tensor]]  # the objective, and name -> its unweighted term
DENOMINATORS = "denominators"  # name in a batch of what the numerators of its losses are divided by


class Divisible(Distributed):
    """A module that repeats an optimizer step in smaller parts where memory runs out in it.

    Nothing but gradients is computed anew, and they are those of the undivided batch within rounding; dropout draws
    other numbers. On several devices that hold the model, all of them repeat the step. Shards cannot: in the midst of a
    step the others wait for a block of the device that fails.

    Attributes:
        rows_at_once: Most rows of a batch in memory at once, on each device; ``None`` for all.
        accumulate: Number of batches per optimizer step.
    """

    completion: Completion | None = None
    rows_at_once: int | None = None
    accumulate: int
    _batches: list[Batch]  # of the optimizer step
    _graphs: StepGraphs | None = None
    _is_apart = True
    _fitting = 0  # size of the largest batch that did fit
    _next = 0  # size of the batch that is computed

    @property
    @abstractmethod
    def progress(self) -> float:
        """Share of the optimizer steps that are done, in [0, 1]."""

    @property
    @abstractmethod
    def records(self) -> bool:
        """Whether its passes are recorded, and gradients are averaged after them; the same on all devices."""

    @property
    @abstractmethod
    def objective(self) -> Objective:
        """The objective of the model as it stands."""

    def penalty(self) -> Tensor | None:
        """A term of the objective that depends on no batch, a scalar with gradient."""
        return None

    def evaluate(self, batch: Batch) -> Loss:
        """The objective on a batch, a scalar with gradient; and name -> its unweighted term, without."""
        total, terms = self.objective(batch, self.progress)
        penalty = self.penalty()
        return total if penalty is None else total + penalty, terms

    def apart(self, batch: Batch) -> bool:
        """Whether devices that hold the model should compute their gradients of a batch first, and then average them.

        They do so where passes are recorded, and where a batch is larger than any that did fit, as none of them could
        repeat a step in its midst; else they average them meanwhile, which is faster. The answer is the same on all of
        them, and holds for the batch.
        """
        if self._graphs is not None:
            return True
        sizes = process_group.all_gather((_size(batch), len(batch["labels"])))
        self._next = max(size for size, _ in sizes)
        divided = self.rows_at_once is not None and max(rows for _, rows in sizes) > self.rows_at_once
        self._is_apart = divided or self._next > self._fitting
        return self._is_apart

    def differentiated(self, batch: Batch, *, first: bool) -> Loss:
        """As ``evaluate``, but without gradient: it is added to that of the parameters where ``apart`` holds.

        Args:
            batch: This device's share of a batch.
            first: Whether it is the first batch of an optimizer step.
        """
        self._batches = [batch] if first else [*self._batches, batch]
        if not self._is_apart:
            with self.split():
                return self.evaluate(batch)
        to_do = [batch]

        def add_gradients() -> Loss:
            nonlocal to_do
            now, to_do = to_do, self._batches  # those before it too, where it is repeated
            if len(now) == len(self._batches):
                self._zero()
            return [self._add_gradient(each) for each in now][-1]

        result = self.until_it_fits(add_gradients, rows=len(batch["labels"]))
        if process_group.size() > 1 and self.trainer.optimizers[0].state:  # memory is as full as it gets
            self._fitting = max(self._fitting, self._next)
        return result

    def until_it_fits(self, work: Callable[[], T], *, rows: int) -> T:
        """The result of ``work``, which is repeated in parts half as large while memory runs out in it.

        Args:
            work: Leaves to ``agreed`` what may run out of memory, and computes batches in ``parts``.
            rows: Number of rows of a batch.

        Raises:
            Exception: Memory runs out at one row.
        """
        while True:
            try:
                return work()
            except _DoesNotFit as error:
                if any(process_group.all_gather(self._graphs is not None and self._graphs.recorded)):
                    self._graphs.give_up("memory for them is lacking")  # type: ignore[union-attr]
                else:
                    self._halve(rows, error.cause)
            if self.completion is not None:
                self.completion.release()  # what it writes next takes it again
            out_of_memory.release()  # outside of the handler, which holds tensors

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if not self._is_apart:  # else gradients are there already
            optimizer.zero_grad()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._is_apart:
            loss.backward(*args, **kwargs)

    def parts(self, batch: Batch) -> Iterator[Callable[[], Loss]]:
        """The objective without penalty in as many parts as ``rows_at_once`` asks for; they add up to it.

        Args:
            batch: Inputs and labels.
        """
        parts = _divided(batch, self._count(len(batch["labels"])))
        denominators = self._denominators(parts)

        def of_part(part: Batch) -> Loss:
            known = iter(denominators)
            with self.divided_by(lambda _: next(known)):
                return self.objective(part, self.progress)

        for part in parts:
            yield lambda part=part: of_part(part)  # type: ignore[misc]

    def _add_gradient(self, batch: Batch) -> Loss:
        """Compute the objective on a batch, and add its gradient.

        Raises:
            _DoesNotFit: On all devices, where memory ran out on one of them.
        """
        alone = process_group.size() == 1 or self._are_shards
        if self._count(len(batch["labels"])) == 1 and (alone or self._graphs is not None):
            own = None if alone else self.objective.denominators(batch)
            if own is not None:  # shared here: no device waits for another within a recording
                with self.split():
                    batch = {**batch, DENOMINATORS: torch.stack([self.shared_denominator(count) for count in own])}
            return self.agreed(lambda: self._whole(batch))
        with self.split():
            parts = list(self.parts(batch))  # devices exchange denominators before any of them may fail
        return self.agreed(lambda: self._summed(parts))

    def _whole(self, batch: Batch) -> Loss:
        if self._graphs is None:
            return self.compute(batch)
        self.objective.schedule(self.progress, self.device)
        return self._graphs(batch)

    def compute(self, batch: Batch) -> Loss:
        """As ``evaluate``, but without gradient, which is added to that of the parameters."""
        known = iter(batch.get(DENOMINATORS, ()))
        with self.divided_by(lambda _: next(known)) if DENOMINATORS in batch else self.split():
            total, terms = self.evaluate(batch)
        self._add(total)
        return total.detach(), terms

    def _summed(self, parts: list[Callable[[], Loss]]) -> Loss:
        penalty = self.penalty()
        totals, of_parts = [], []
        for number, part in enumerate(parts):
            total, terms = part()
            if number == 0 and penalty is not None:
                total = total + penalty
            self._add(total)
            totals.append(total.detach())
            of_parts.append(terms)
        sums = {name: torch.stack([terms[name] for terms in of_parts]).sum(0) for name in of_parts[0]}
        return torch.stack(totals).sum(), sums

    def _add(self, total: Tensor) -> None:
        """Add a gradient as Lightning does: backward of a batch's share of the step, scaled for float16."""
        total = total / self.accumulate
        if (scaler := getattr(self.trainer.precision_plugin, "scaler", None)) is not None:
            total = scaler.scale(total)
        with torch.autocast(total.device.type, enabled=False):
            total.backward()

    def _zero(self) -> None:
        if self._graphs is not None:
            self._graphs.zero()
            return
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()

    def _denominators(self, parts: list[Batch]) -> list[Tensor]:
        """What each numerator is divided by, in the order in which the objective asks for it."""
        sums = self.agreed(lambda: self._own_denominators(parts))
        return [self.shared_denominator(denominator) for denominator in sums]

    @torch.no_grad()
    def _own_denominators(self, parts: list[Batch]) -> list[Tensor]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the passes with gradient draw the same numbers again
            of_parts = [self._denominators_of(part) for part in parts]
        return [torch.stack(denominators).sum(0) for denominators in zip(*of_parts, strict=True)]

    def _denominators_of(self, part: Batch) -> list[Tensor]:
        """Denominators of the losses on a part of a batch."""
        if (known := self.objective.denominators(part)) is not None:
            return known
        requested: list[Tensor] = []

        def note(denominator: Tensor) -> Tensor:
            requested.append(denominator)
            return denominator

        with self.divided_by(note):
            self.objective(part, self.progress)
        return requested

    def _count(self, rows: int) -> int:
        """Number of parts for so many rows; the same for all shards, which gather every block together."""
        if self.rows_at_once is None:
            return 1
        if not self._are_shards:
            return -(-rows // self.rows_at_once)
        everywhere = process_group.all_gather(rows)
        return min(-(-max(everywhere) // self.rows_at_once), min(everywhere))

    def agreed(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which waits for no other device.

        Raises:
            _DoesNotFit: On all devices, where memory ran out on one of them.
        """
        if self._are_shards:
            return work()
        cause = None
        try:
            result = work()
        except Exception as error:
            if not out_of_memory.is_out_of_memory(error):
                raise
            cause = error.with_traceback(None)  # which holds the tensors of all its frames
            cause.__context__ = None
        if any(process_group.all_gather(cause is not None)):
            raise _DoesNotFit(cause or MemoryError("out of memory on another device"))
        return result

    def _halve(self, rows: int, cause: Exception) -> None:
        """Have a step computed in parts half as large from here on.

        Raises:
            Exception: ``cause``, where a part is one row already.
        """
        rows = max(process_group.all_gather(rows))
        largest = min(rows, self.rows_at_once or rows)
        if largest == 1:
            raise cause
        self.rows_at_once = -(-largest // 2)
        if self._graphs is not None:
            self._graphs.give_up("batches are computed in parts")
        if process_group.is_first():
            each = " on each device" if process_group.size() > 1 else ""
            parts = -(-rows // self.rows_at_once) * self.accumulate
            print(
                f"  out of memory at {largest} rows{each}: {parts} x {self.rows_at_once} rows per step from here",
                flush=True,
            )


class _DoesNotFit(Exception):
    """Memory ran out.

    Attributes:
        cause: The error that says so.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _divided(batch: Batch, count: int) -> list[Batch]:
    """The rows of a batch in ``count`` parts of nearly equal size; what is known of the whole is left out."""
    tensors = {
        name: tensor.tensor_split(count) for name, tensor in batch.items() if not name.startswith((POSITIONS, REAL))
    }
    return [{name: parts[number] for name, parts in tensors.items()} for number in range(count)]


def _size(batch: Batch) -> int:
    """Number of tokens of inputs and labels, padding included."""
    return batch["input_ids"].numel() + batch["labels"].numel()
