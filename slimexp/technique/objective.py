"""The objective of a training: the weighted sum of its losses on a batch, with or without a teacher."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from slimexp.completion.base import WRITTEN
from slimexp.loss.base import LabelLoss, Loss, Outputs, Ratio, counted_labels
from slimexp.loss.sample import Layout
from slimexp.model.alignment import SPANS, teacher_batch
from slimexp.model.attention import attended, captured
from slimexp.model.base import POSITIONS, REAL, Batch, Family, positions
from slimexp.model.compiled import blocks_compiled
from slimexp.model.head import Head, head_of, states
from slimexp.teacher_cache.cached import CachedTeacher
from slimexp.technique.label_sums import LabelSums
from slimexp.weight.attachment import attached

LOGITS_AT = f"{POSITIONS}logits"


def summed(losses: Mapping[str, Loss]) -> dict[str, LabelLoss]:
    """Losses that are sums over labels, for a chunk of which logits then exist; none where another reads logits too."""
    of_labels = {name: loss for name, loss in losses.items() if isinstance(loss, LabelLoss)}
    others = any(loss.needs_logits for name, loss in losses.items() if name not in of_labels)
    return {} if others else of_labels


class Objective:
    """The weighted sum of losses.

    Where all that the losses read of logits is sums over labels, bodies run without their heads, and logits exist for a
    chunk of labels at a time.

    Args:
        losses: Name -> loss.
        family: The student.
        teacher: The teacher; ``None`` where no loss reads one.
        logits_at_once: Number of logits in memory at once, of each model.
        shared: Denominator of a loss on this device -> what its numerator is divided by here.
        cached: What stands in for the teacher where its outputs are kept.
    """

    def __init__(
        self,
        losses: nn.ModuleDict,
        family: Family,
        teacher: Family | None,
        *,
        logits_at_once: int,
        shared: Callable[[Tensor], Tensor],
        cached: CachedTeacher | None = None,
    ) -> None:
        self.losses = losses
        self.family = family
        self.teacher = teacher
        self.shared = shared
        self.cached = cached
        self._sums = self._label_sums(logits_at_once)
        self._teacher_head = None if teacher is None or self._sums is None else self._head_of_teacher(teacher)
        self._teacher_casts = True
        self._scheduled: dict[str, dict[str, Tensor]] = {}  # of losses over labels
        self._weights: dict[str, Tensor] = {}
        self._scheduled_at: tuple[float, torch.device] | None = None

    @property
    def parts(self) -> tuple[nn.ModuleDict, Family, Family | None, CachedTeacher | None]:
        """Losses, student and teacher, and what stands in for it."""
        return self.losses, self.family, self.teacher, self.cached

    @property
    def in_chunks(self) -> bool:
        """Whether logits exist for a chunk of labels at a time."""
        return self._sums is not None

    @property
    def of_labels(self) -> bool:
        """Whether every loss is a mean over labels, whose number is known before a forward pass."""
        return all(isinstance(loss, LabelLoss) for loss in self._named().values())

    def schedule(self, progress: float, device: torch.device) -> None:
        """Bring scheduled quantities to their values at ``progress``.

        They are tensors that stay where they are, so that a recorded pass, which is replayed without them, reads them.
        """
        if self._scheduled_at == (progress, device):
            return
        self._scheduled_at = progress, device
        for name, loss in self._named().items():
            held = self._scheduled.setdefault(name, {})
            for key, value in loss.scheduled(progress).items() if isinstance(loss, LabelLoss) else ():
                _fill(held, key, value, device)
            _fill(self._weights, name, loss.weight_at(progress), device)

    def constants(self, progress: float) -> tuple[float, ...]:
        """Scheduled quantities that are numbers, not tensors, in what is computed at ``progress``."""
        losses = (loss for loss in self._named().values() if not isinstance(loss, LabelLoss))
        return tuple(value for loss in losses for value in loss.scheduled(progress).values())

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on a batch, a scalar with gradient; and name -> its unweighted term, without.

        Args:
            batch: Inputs and labels, on the models' device.
            progress: Optimizer step / total steps, in [0, 1].
        """
        self.schedule(progress, batch["labels"].device)
        sums, losses = self._sums, self._named()
        teacher = None if self.teacher is None else self._taught(self.teacher, batch)
        if self.cached is not None:
            teacher = self.cached.outputs(batch, whole=sums is None)
        student = self._outputs(self.family, batch, None if sums is None else sums.student, self._student_blocks)
        student = replace(student, spans=batch.get(SPANS))
        plain = losses if sums is None else {n: loss for n, loss in losses.items() if n not in sums.losses}
        terms = {
            name: _unless_written(
                loss,
                batch,
                self._term(
                    loss.of_outputs(student, teacher, batch["labels"], self._scheduled[name])
                    if isinstance(loss, LabelLoss)
                    else loss(student, teacher, batch["labels"], progress)
                ),
            )
            for name, loss in plain.items()
        }
        total = torch.stack([self._weights[name] * term for name, term in terms.items()]).sum() if terms else None
        if sums is not None:
            of_labels, parts = self._of_labels(sums, batch, student, teacher)
            total = of_labels if total is None else total + of_labels
            terms |= parts
        assert total is not None
        return total, {name: terms[name].detach() for name in losses}

    def denominators(self, batch: Batch) -> list[Tensor] | None:
        """What ``shared`` is asked for on a batch, in order; ``None`` where no one knows before a forward pass."""
        if not self.of_labels:
            return None
        return [counted_labels(batch["labels"])[None]] * (1 if self.in_chunks else len(self.losses))

    @contextmanager
    def accelerated(self, *, compiled: bool, teacher_type: torch.dtype | None) -> Iterator[None]:
        """Run compiled, and the teacher in a type of its own, within the context.

        Args:
            compiled: Whether blocks, and what is done to logits, go through ``torch.compile``.
            teacher_type: Type of the teacher's weights, which stay so afterwards; ``None`` for the one they have.
        """
        if teacher_type is not None and self.teacher is not None:
            self._teacher_casts = not runs_in(self.teacher, teacher_type)
        with ExitStack() as stack:
            if compiled:
                families = [self.family] if self.teacher is None else [self.family, self.teacher]
                stack.enter_context(blocks_compiled(*families, without=self._observed()))
                if self._sums is not None:
                    self._sums.compile()
            yield

    def _observed(self) -> list[nn.Module]:
        """Blocks within which outputs are read."""
        of_teacher = [] if self.teacher is None else attended(self.teacher, self._teacher_blocks)
        return [*attended(self.family, self._student_blocks), *of_teacher]

    def _label_sums(self, logits_at_once: int) -> LabelSums | None:
        """Sums over labels in chunks; ``None`` where a loss reads logits otherwise, or a head cannot be told apart."""
        of_labels = summed(self._named())
        if not of_labels:
            return None
        if isinstance(self.family.model, FSDPModule):  # a sharded head is whole in the forward pass of its model alone
            return None
        student = head_of(self.family)
        needs_teacher = any(loss.needs_teacher for loss in of_labels.values())
        teacher: Head | Layout | None = None if self.cached is None else self.cached.form.head
        if needs_teacher and self.teacher is not None:
            teacher = head_of(self.teacher)
        if student is None or (needs_teacher and teacher is None):
            return None
        return LabelSums(of_labels, student=student, teacher=teacher, logits_at_once=logits_at_once)

    def _head_of_teacher(self, teacher: Family) -> Head | None:
        known = None if self._sums is None else self._sums.teacher
        return known if isinstance(known, Head) else head_of(teacher)

    def _of_labels(
        self, sums: LabelSums, batch: Batch, student: Outputs, teacher: Outputs | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses over labels, and name -> term; ``logits`` of the outputs are states."""
        labels = batch["labels"]
        index = batch[LOGITS_AT] if LOGITS_AT in batch else positions(batch, "labels")
        taught = None if teacher is None or sums.teacher is None else _rows(teacher.logits, index)
        count = self.shared(counted_labels(labels)[None]).clamp(min=1e-12)
        weights = torch.stack([_unless_written(loss, batch, self._weights[name]) for name, loss in sums.losses.items()])
        total, numerators = sums(
            _rows(student.logits, index),
            taught,
            labels.flatten().index_select(0, index),
            weights / count,
            self._scheduled,
        )
        terms = zip(sums.losses.items(), numerators / count, strict=True)
        return total, {name: _unless_written(loss, batch, term) for (name, loss), term in terms}

    def _term(self, ratio: Ratio) -> Tensor:
        return Ratio(ratio.numerator, self.shared(ratio.denominator)).mean()

    @torch.no_grad()
    def _taught(self, teacher: Family, batch: Batch) -> Outputs:
        teacher.model.eval()
        kind = teacher.device.type
        read = teacher_batch(batch)
        with nullcontext() if self._teacher_casts else torch.autocast(kind, enabled=False):
            outputs = self._outputs(teacher, read, self._teacher_head, self._teacher_blocks)
        return outputs if read is batch else replace(outputs, labels=read["labels"], spans=read[SPANS])

    def _outputs(self, family: Family, batch: Batch, head: Head | None, blocks: Collection[int]) -> Outputs:
        """Outputs of a model, with the self-attention of some blocks; with ``head``, its inputs in place of logits."""
        hidden = any(loss.needs_hidden for loss in self._named().values())
        with captured(family, batch, blocks) as attention:
            if head is None:
                logits, of_blocks = family.forward(batch, hidden=hidden)
            else:
                logits, of_blocks = states(family, batch, head, hidden=hidden)
        return Outputs(logits, of_blocks, attention)

    @property
    def _student_blocks(self) -> set[int]:
        return {loss.student_block for loss in self._named().values() if loss.student_block is not None}

    @property
    def _teacher_blocks(self) -> set[int]:
        return {loss.teacher_block for loss in self._named().values() if loss.teacher_block is not None}

    def _named(self) -> Mapping[str, Loss]:
        return dict(self.losses.items())  # type: ignore[arg-type]


def counted(batch: Batch, *, read: Collection[str], shares: int | None = None) -> Batch:
    """A batch on the host with what is known of it there, so that nothing waits for a device to count.

    Args:
        batch: Inputs and labels.
        read: Names of masks and labels at whose real tokens hidden states will be read.
        shares: Other tokens, which count for nothing, join those whose logits or hidden states are read, up to a whole
            number of this many equal shares of the batch, so that few numbers of them occur; ``None``: none does.
    """
    counting = positions(batch, "labels")
    known = {LOGITS_AT: counting if shares is None else _filled_up(counting, batch["labels"], shares)}
    mask = batch.get("attention_mask")
    if mask is not None and bool(mask.all()):  # none: attention has a faster kernel, and need not look whether it may
        batch = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    for name in read:
        if name in batch:
            real = positions(batch, name)
            known[f"{POSITIONS}{name}"] = real if shares is None else _filled_up(real, batch[name], shares)
            if shares is not None:
                known[f"{REAL}{name}"] = torch.arange(len(known[f"{POSITIONS}{name}"])) < len(real)
    if torch.cuda.is_available():
        known = {name: tensor.pin_memory() for name, tensor in known.items()}
    return {**batch, **known}


def _filled_up(positions: Tensor, batch: Tensor, shares: int) -> Tensor:
    """``positions`` in the flattened ``batch``, and enough of the others behind them for whole ``shares`` of it."""
    total = batch.numel()
    share = -(-total // shares)
    wanted = min(-(-len(positions) // share) * share, total) - len(positions)
    others = torch.ones(total, dtype=torch.bool).index_fill(0, positions, False).nonzero().squeeze(1)
    return torch.cat([positions, others[:wanted]])


def _fill(held: dict[str, Tensor], key: str, value: float, device: torch.device) -> None:
    """Bring a tensor to a value, where it lies."""
    if key not in held or held[key].device.type != device.type:
        held[key] = torch.empty((), device=device)
    held[key].fill_(value)


def _unless_written(loss: Loss, batch: Batch, value: Tensor) -> Tensor:
    """``value``, or 0 of a loss that learns labels themselves, where the student has written them."""
    return value if loss.needs_teacher or WRITTEN not in batch else value * (1 - batch[WRITTEN][0])


def _rows(states: Tensor, index: Tensor) -> Tensor:
    """States [B, T, D] at places of the flattened batch, [N, D]."""
    return states.flatten(0, 1).index_select(0, index)


@torch.no_grad()
def runs_in(family: Family, dtype: torch.dtype) -> bool:
    """Give a model's parameters a type, but no buffer (rotary frequencies, say); whether it runs without autocast."""
    if any(attached(family.model)):
        return False
    for parameter in family.model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    batch = {name: tensor.to(family.device) for name, tensor in family.encode([("a", "a", 0)]).items()}
    try:
        with torch.autocast(family.device.type, enabled=False):
            family.forward(batch)
    except RuntimeError:  # products of unlike types
        return False
    return True
