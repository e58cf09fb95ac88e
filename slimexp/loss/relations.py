"""Divergence between the self-attention relations of student and teacher."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import Attention, Loss, Outputs, Ratio, Stack, Stacks
from slimexp.loss.divergence import relative_entropy
from slimexp.schedule import Schedule

PARTS = {"q": "queries", "k": "keys", "v": "values"}


class AttentionRelations(Loss):
    """KL divergence from the teacher's relations between tokens to the student's, in nats per token and relation head.

    A relation is the softmax of scaled dot products of queries with queries (``qq``), of keys with keys (``kk``) or of
    values with values (``vv``), all heads side by side and divided anew into relation heads, so that neither widths nor
    numbers of heads of the two models must agree. The student's last block learns from one block of the teacher (Wang
    et al. 2021, "MiniLMv2", section 3.1). ``qk`` is the attention itself (Wang et al. 2020, "MiniLM", section 3.1),
    without what a model does to queries and keys behind their projections. A token of a decoder is held against
    those that it can see alone.

    Args:
        weight: Weight of the term.
        relations: Pairs of ``q``, ``k`` and ``v``; the term is their mean.
        relation_heads: Number of relation heads; a divisor of the widths of both models' queries, keys and values.
        teacher_block: Index of the teacher's block, from 0, or from the end: -1 is the last.

    Raises:
        ValueError: A relation that is none, or a number of heads below 1.
    """

    needs_teacher = True
    needs_logits = False
    student_block = -1
    teacher_block: int

    def __init__(
        self, *, weight: float | Schedule, relations: Sequence[str], relation_heads: int, teacher_block: int
    ) -> None:
        super().__init__(weight=weight)
        if not relations or any(len(pair) != 2 or not set(pair) <= PARTS.keys() for pair in relations):
            raise ValueError(f"relations must be pairs of q, k and v, such as [qq, kk, vv], got {list(relations)}")
        if relation_heads < 1:
            raise ValueError(f"relation_heads must be >= 1, got {relation_heads}")
        self.relations = list(relations)
        self.relation_heads = relation_heads
        self.teacher_block = teacher_block

    def prepare(self, student: Stacks, teacher: Stacks, *, seed: int) -> None:
        for name, stack in teacher.items():
            if not -stack.depth <= self.teacher_block < stack.depth:
                raise ValueError(
                    f"teacher_block must be one of the teacher's {stack.depth} blocks ({name}), -{stack.depth}.."
                    f"{stack.depth - 1}, got {self.teacher_block}"
                )
            self._check("teacher", stack, self.teacher_block)
        for stack in student.values():
            self._check("student", stack, -1)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        assert teacher is not None
        numerators, denominators = [], []
        for (stack, _), own in student.attention.items():
            other = teacher.attention[stack, self.teacher_block]
            for pair in self.relations:
                numerators.append(self._divergence(pair, own, other))
                denominators.append(self.relation_heads * _sees_itself(own).sum(dtype=torch.float32))
        return Ratio(torch.stack(numerators), torch.stack(denominators))

    def _divergence(self, pair: str, student: Attention, teacher: Attention) -> Tensor:
        """Divergence of a relation, summed over tokens and relation heads."""
        divergence = relative_entropy(self._relation(pair, teacher), self._relation(pair, student))  # [B, R, T]
        return torch.where(_sees_itself(student)[:, None], divergence, 0.0).sum()

    def _relation(self, pair: str, attention: Attention) -> Tensor:
        """Logarithms of a relation, [B, R, T, T]."""
        first, second = (
            getattr(attention, PARTS[part]).float().unflatten(-1, (self.relation_heads, -1)).transpose(1, 2)
            for part in pair
        )
        products = (first @ second.transpose(-1, -2)).float()  # autocast gives products in half precision
        products = products / math.sqrt(first.shape[-1])
        lowest = torch.finfo(products.dtype).min / 2  # differences of two stay finite
        return F.log_softmax(products.masked_fill(~attention.sees[:, None], lowest), dim=-1)

    def _check(self, model: str, stack: Stack, block: int) -> None:
        """Refuse a block whose queries, keys and values cannot be divided into the relation heads."""
        widths = stack.attention[block]
        if widths is None:
            raise ValueError(
                f"relations read queries, keys and values of layers of their own, and the {model} has none: "
                "leave the loss out, or choose a loss on hidden states"
            )
        if any(width % self.relation_heads for width in widths):
            most = math.gcd(*widths)
            fitting = [heads for heads in range(1, most + 1) if most % heads == 0]
            raise ValueError(
                f"relation_heads must divide the {model}'s queries, keys and values of {', '.join(map(str, widths))} "
                f"channels, got {self.relation_heads}: choose one of {', '.join(map(str, fitting))}"
            )
        unlike = [pair for pair in self.relations if len({widths["qkv".index(part)] for part in pair}) > 1]
        if unlike:
            raise ValueError(
                f"relations of the {model}'s {', '.join(PARTS[part] for part in unlike[0])} need equal widths, got "
                f"{', '.join(map(str, widths))} (its query heads share keys): leave {unlike[0]} out"
            )


def _sees_itself(attention: Attention) -> Tensor:
    """Whether a token is no padding, [B, T]."""
    return attention.sees.diagonal(dim1=-2, dim2=-1)
