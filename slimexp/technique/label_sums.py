"""Losses over labels, a chunk of tokens at a time, so that no tensor of all tokens times the vocabulary ever exists.

The gradient of a chunk's logits is formed with its losses, multiplied into the gradients of states and weight, and
dropped, as in fused linear cross-entropy (Hsu et al. 2024, "Liger Kernel", section 3.2), here for any sum over labels
and for a teacher's logits as well.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import LabelLoss
from slimexp.loss.sample import Layout, Sample
from slimexp.model.head import Head
from slimexp.weight.product import add_product

Sums = tuple[Tensor, Tensor]

_LEAST = 1e-30
_SCALE = 64  # gradients of logits are about 1/64 at most, far from both ends of float16: their sums fit as well


class LabelSums:
    """Numerators of some losses over labels, and their weighted sum with its gradient.

    Args:
        losses: Name -> loss.
        student: Head of the student.
        teacher: Head of the teacher, or what samples of it consist of; ``None`` where no loss reads one.
        logits_at_once: Number of logits in memory at once, of each model.
    """

    def __init__(
        self, losses: Mapping[str, LabelLoss], *, student: Head, teacher: Head | Layout | None, logits_at_once: int
    ) -> None:
        self.losses = losses
        self.student = student
        self.teacher = teacher
        self.logits_at_once = logits_at_once
        self._compute: Callable[..., Sums] = self._of_chunk
        self._compiled = False

    def compile(self) -> None:
        """Fuse what is done to the logits of a chunk into few kernels."""
        self._compute, self._compiled = torch.compile(self._of_chunk), True

    def __call__(
        self,
        states: Tensor,
        teacher_states: Tensor | None,
        labels: Tensor,
        coefficients: Tensor,
        scheduled: Mapping[str, Mapping[str, Tensor]],
    ) -> Sums:
        """Sums over the given tokens.

        Args:
            states: Inputs of the student's head, [N, D].
            teacher_states: Inputs of the teacher's head, [N, D'], or bytes of its samples.
            labels: [N].
            coefficients: Factor of each numerator in the sum of all, [K].
            scheduled: Name of a loss -> its scheduled quantities.

        Returns:
            The weighted sum, a scalar with gradient; and the numerators, [K], without.
        """
        teacher: _Products | _Rows | None = None
        if teacher_states is not None and isinstance(self.teacher, Layout):
            teacher = _Rows(teacher_states)
        elif teacher_states is not None and isinstance(self.teacher, Head):
            teacher = _Products(self.teacher.module.weight, self.teacher.module.bias, teacher_states)
        top = coefficients.max().clamp(min=_LEAST) * _SCALE
        total, numerators = _Chunked.apply(
            states,
            self.student.module.weight,
            self.student.module.bias,
            self,
            teacher,
            labels,
            (coefficients / top, scheduled),
            torch.is_grad_enabled(),
        )
        return total * top, numerators

    def chunks(self, count: int, width: int) -> int:
        """Number of chunks of nearly equal length for ``count`` tokens and ``width`` logits each."""
        return max(1, -(-count * width // self.logits_at_once))

    def of_chunk(self, student: Tensor, teacher: Tensor | None, labels: Tensor, *rest: Any) -> Sums:
        """Weighted sum and numerators of a chunk, compiled where that was asked for.

        Args:
            student: Products of the student's head, [n, V].
            teacher: Products of the teacher's head, [n, V'], or bytes of its samples.
            labels: [n].
            rest: Coefficients and scheduled quantities.
        """
        if len(labels) < 2:  # which a compiler takes for special numbers
            return self._of_chunk(student, teacher, labels, *rest)
        if self._compiled:  # one kernel for any number of tokens
            for tensor in (student, teacher, labels):
                if tensor is not None:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._compute(student, teacher, labels, *rest)

    def _of_chunk(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        coefficients: Tensor,
        scheduled: Mapping[str, Mapping[str, Tensor]],
    ) -> Sums:
        student = self.student.logits(student)
        taught: Tensor | Sample | None = None
        if teacher is not None and isinstance(self.teacher, Layout):
            taught = self.teacher.read(teacher)
        elif teacher is not None and isinstance(self.teacher, Head):
            taught = self.teacher.logits(teacher)
        numerators = torch.stack(
            [loss.of_logits_or_sample(student, taught, labels, scheduled[name]) for name, loss in self.losses.items()]
        )
        return (coefficients * numerators).sum(), numerators.detach()


class _Products:
    """Products of a head with states, in the type that autocast, where it is on, multiplies in.

    Args:
        weight: [V, D].
        bias: [V], or ``None``.
        states: [N, D].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, states: Tensor) -> None:
        self.dtype = _product_type(weight)
        self.weight = weight.detach().to(self.dtype)
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        self.states = states.detach()

    def parts(self, chunks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """States and products of each of ``chunks`` runs of tokens."""
        for part in self.states.tensor_split(chunks):
            inputs = part.to(self.dtype)
            yield inputs, F.linear(inputs, self.weight, self.bias)


class _Rows:
    """Rows that no head multiplies, in place of ``_Products``: bytes of samples, uint8 [N, bytes]."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def parts(self, chunks: int) -> Iterator[tuple[None, Tensor]]:
        """Nothing, and the rows of each of ``chunks`` runs of tokens."""
        return ((None, part) for part in self.rows.tensor_split(chunks))


class _Chunked(torch.autograd.Function):
    """``LabelSums`` as a function of states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sums: LabelSums,
        teacher: _Products | _Rows | None,
        labels: Tensor,
        rest: tuple[Tensor, Mapping[str, Mapping[str, Tensor]]],
        with_gradient: bool,
    ) -> Sums:
        student = _Products(weight, bias, states)
        needs_gradient = with_gradient and any(ctx.needs_input_grad[:3])
        total, numerators = rest[0].new_zeros(()), torch.zeros_like(rest[0])
        of_states = torch.zeros_like(states, dtype=student.dtype)
        of_weight = None
        if needs_gradient and ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight, dtype=torch.float32)
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        chunks = sums.chunks(len(labels), weight.shape[0])
        taught = repeat((None, None), chunks) if teacher is None else teacher.parts(chunks)
        targets = zip(labels.tensor_split(chunks), of_states.tensor_split(chunks), strict=True)
        with torch.autocast(states.device.type, enabled=False):
            for number, ((inputs, products), (_, teacher_products), (label, gradient)) in enumerate(
                zip(student.parts(chunks), taught, targets, strict=True)
            ):
                products.requires_grad_(needs_gradient)
                with torch.set_grad_enabled(needs_gradient):
                    value, terms = sums.of_chunk(products, teacher_products, label, *rest)
                total += value.detach()
                numerators += terms
                if not needs_gradient:
                    continue
                (of_products,) = torch.autograd.grad(value, products)
                torch.mm(of_products, student.weight, out=gradient)
                if of_weight is not None:
                    add_product(of_weight, of_products.T, inputs, first=number == 0)  # some GB, as large as the head
                if of_bias is not None:
                    of_bias += of_products.sum(0, dtype=torch.float32)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        ctx.dtypes = states.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(numerators)
        return total, numerators

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_inputs = [
            None if saved is None or not needed else _scaled(saved, gradient, dtype)
            for saved, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        ]
        return (*of_inputs, None, None, None, None, None)


def _scaled(saved: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """``gradient * saved`` in a type, in one pass; in place where that is the type already.

    Who asks for a gradient twice gets an error, as of any saved tensor that was changed.
    """
    if saved.dtype == dtype:
        return saved.mul_(gradient)
    return torch.mul(saved, gradient, out=torch.empty_like(saved, dtype=dtype))


def _product_type(weight: Tensor) -> torch.dtype:
    """Type that autocast, where it is on, multiplies in."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
