"""One pass of a teacher over the rows of a training that its cache lacks."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimexp.calibration.observe import visiting
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family
from slimexp.model.head import Head, head_of, states
from slimexp.teacher_cache.base import Form, TeacherOutputs
from slimexp.teacher_cache.row_key import label_mask, row_keys
from slimexp.teacher_cache.store import Store

PART_BYTES = 2**28  # of values in memory, before they are written
# Labels, at least, at which estimates are held against the teacher. At T = 8, with a vocabulary of 49k, the standard
# error of their mean is some 0.7 % at 2^15 labels, and falls with the root of their number: half of that at 2^17.
MEASURED = {"cpu": 2**15, "cuda": 2**17}

Batches = Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class Found:
    """What a cache holds of the rows of a training, each counted once.

    Attributes:
        rows: Number of rows.
        labels: Number of their labels that count.
        lacking: Keys of the rows that it does not hold.
        lacking_labels: Number of their labels.
    """

    rows: int
    labels: int
    lacking: frozenset[int]
    lacking_labels: int


def look_up(store: Store, batches: Iterable[Batch]) -> Found:
    """What the cache holds of the rows of ``batches``, which are on the host."""
    seen: dict[int, int] = {}
    lacking: set[int] = set()
    for batch in counted(batches, "batch to look up in the teacher cache"):
        keys = row_keys(batch)
        seen |= zip(keys.tolist(), _counts(batch).tolist(), strict=True)
        lacking |= set(keys[~store.has(keys)].tolist())
    return Found(len(seen), sum(seen.values()), frozenset(lacking), sum(seen[key] for key in lacking))


class TeacherPass:
    """Runs a teacher over batches as training would, and keeps what it says of rows that are lacking.

    Args:
        store: The cache; within its ``alone``.
        form: The form that outputs are kept in.
        teacher: The teacher, on ``device``.
        student: The student, by whose divergence estimates are held against the teacher.
        device: Device that it runs on.
        autocast: Context that it runs in.
    """

    def __init__(
        self,
        store: Store,
        form: Form,
        teacher: Family,
        student: Family,
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.store, self.form, self.teacher, self.student = store, form, teacher, student
        self.device, self.autocast = device, autocast
        form.to(device, None)
        self.head = form.head if isinstance(form.head, Head) else head_of(teacher)
        self._pending = _Pending()

    @torch.no_grad()
    def run(self, batches: Iterable[Batch], found: Found) -> None:
        """Have the cache hold all rows of ``batches``.

        Args:
            batches: The batches that ``found`` is of, on the host.
            found: What the cache holds of them.

        Raises:
            ValueError: The disk has no room for what is lacking.
        """
        lacking, checked = set(found.lacking), False
        self.teacher.model.eval()
        on_device = visiting(self.student.model, self.device) if self.form.estimated else nullcontext()
        with on_device:
            for batch in counted(batches, "batch of the only pass of the teacher"):
                if not lacking:
                    break
                self._add(batch, lacking)
                if not checked and self._pending.counts:
                    each = self._pending.bytes / max(sum(self._pending.counts), 1)
                    self.store.check_room(round(each * found.lacking_labels))
                    checked = True
                if self._pending.bytes >= PART_BYTES or not lacking:
                    self._pending = self._pending.written(self.store)

    def _add(self, batch: Batch, lacking: set[int]) -> None:
        """Keep what the teacher says of the rows of a batch that are lacking, once of each; they are then not."""
        keys, counts, real = row_keys(batch), _counts(batch), label_mask(batch)
        chosen = np.isin(np.arange(len(keys)), np.unique(keys, return_index=True)[1])
        chosen &= np.array([key in lacking for key in keys.tolist()])
        if not chosen.any():
            return
        lacking -= set(keys[chosen].tolist())
        on_device = {name: tensor.to(self.device) for name, tensor in batch.items()}
        rows = (real & torch.from_numpy(chosen).view(-1, *[1] * (real.ndim - 1))).to(self.device)
        with self.autocast():
            outputs = TeacherOutputs(self._outputs(on_device).flatten(0, -2)[rows.flatten()], self.head)
            kept = self.form.encode(outputs, seed=int(keys[0]))
            if self.form.estimated and self._pending.measured < MEASURED.get(self.device.type, MEASURED["cpu"]):
                self._measure(outputs, kept, on_device, rows)
        self._pending.add(keys[chosen].tolist(), counts[chosen].tolist(), kept.cpu())

    def _outputs(self, batch: Batch) -> Tensor:
        return self.teacher.forward(batch)[0] if self.head is None else states(self.teacher, batch, self.head)[0]

    def _measure(self, outputs: TeacherOutputs, kept: Tensor, batch: Batch, rows: Tensor) -> None:
        """Hold estimates of the student's divergence against what they are of, for the first rows of a batch."""
        first = self.student.rows_at_once(rows.shape[1], len(rows))
        chosen = rows[:first].flatten()
        student = self.student.forward({name: tensor[:first] for name, tensor in batch.items()})[0]
        some = slice(0, int(chosen.sum()))
        self._pending.measure(
            self.form.estimates(student.flatten(0, -2)[chosen].float(), outputs.logits(some), kept[some]), some.stop
        )


@dataclass
class _Pending:
    """Rows that are kept, and not written.

    Attributes:
        keys: Their keys.
        counts: Number of labels of each.
        values: What is kept of them, batch by batch.
        estimates: Temperature -> sums of an estimated divergence and of the one that it is of.
        measured: Number of labels that those are of, and of those of earlier parts.
        began: When the work on them began.
    """

    keys: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    estimates: dict[str, list[float]] = field(default_factory=dict)
    measured: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(values.nbytes for values in self.values)

    def add(self, keys: list[int], counts: list[int], values: Tensor) -> None:
        """Add rows."""
        self.keys += keys
        self.counts += counts
        self.values.append(values)

    def measure(self, estimates: dict[str, tuple[float, float]], labels: int) -> None:
        """Add sums of ``Form.estimates``."""
        self.measured += labels
        for temperature, sums in estimates.items():
            held = self.estimates.setdefault(temperature, [0.0, 0.0])
            self.estimates[temperature] = [one + other for one, other in zip(held, sums, strict=True)]

    def written(self, store: Store) -> "_Pending":
        """Write the rows as a part; returns what to go on with."""
        about = {"seconds": time.monotonic() - self.began, "labels": sum(self.counts), "estimates": self.estimates}
        keys, counts = np.array(self.keys, dtype=np.uint64), np.array(self.counts, dtype=np.int64)
        store.append(keys, counts, torch.cat(self.values), about)
        return _Pending(measured=self.measured)


def _counts(batch: Batch) -> NDArray[np.int64]:
    """Number of labels of each row that count."""
    real = label_mask(batch)
    return real.view(len(real), -1).sum(1).numpy().astype(np.int64)
