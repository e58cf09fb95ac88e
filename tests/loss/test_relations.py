import math
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.loss.base import Attention, Outputs, Stack
from slimexp.loss.relations import AttentionRelations

LABELS = torch.zeros(2, 5, dtype=torch.long)
LENGTHS = (5, 3)

pytestmark = pytest.mark.fast


def seen(causal: bool) -> Tensor:
    real = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    sees = real[:, :, None] & real[:, None, :]
    return sees.tril() if causal else sees


def outputs(seed: int, widths: tuple[int, int, int], block: int, *, causal: bool = False) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(2, 5, width, generator=generator) for width in widths]
    return Outputs(torch.zeros(2, 5, 3), attention={("decoder", block): Attention(*parts, sees=seen(causal))})


def made(*relations: str, heads: int = 2, block: int = -1) -> AttentionRelations:
    return AttentionRelations(weight=1.0, relations=relations, relation_heads=heads, teacher_block=block)


def by_hand(student: Attention, teacher: Attention, first: str, second: str, heads: int, *, causal: bool) -> float:
    """MiniLMv2 in Python's own numbers: mean over tokens and relation heads of KL(teacher's row || student's row)."""

    def rows(attention: Attention, row: int, head: int) -> list[list[float]]:
        def part(name: str) -> list[list[float]]:
            states = getattr(attention, name)[row, : LENGTHS[row]].double()
            return states.chunk(heads, dim=-1)[head].tolist()

        relation = []
        for token, query in enumerate(part(first)):
            keys = part(second)[: token + 1] if causal else part(second)
            scores = [sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in keys]
            powers = [math.exp(score) for score in scores]
            relation.append([power / sum(powers) for power in powers])
        return relation

    divergences = [
        sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        for row in range(2)
        for head in range(heads)
        for p, q in zip(rows(teacher, row, head), rows(student, row, head), strict=True)
    ]
    return sum(divergences) / len(divergences)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize(("pair", "parts"), [("qq", ("queries", "queries")), ("vv", ("values", "values")),
                                             ("kk", ("keys", "keys")), ("qk", ("queries", "keys"))])  # fmt: skip
def test_equals_the_published_definition_of_models_of_other_widths(
    pair: str, parts: tuple[str, str], heads: int, causal: bool
) -> None:
    student, teacher = outputs(0, (8, 8, 4), -1, causal=causal), outputs(1, (16, 16, 8), 3, causal=causal)
    found = made(pair, heads=heads, block=3)(student, teacher, LABELS, 0.0).mean().item()
    one, other = student.attention["decoder", -1], teacher.attention["decoder", 3]
    assert found == pytest.approx(by_hand(one, other, *parts, heads, causal=causal), rel=1e-5)


def test_several_relations_are_a_mean() -> None:
    student, teacher = outputs(0, (8, 8, 8), -1), outputs(1, (16, 16, 16), -1)
    single = [made(pair)(student, teacher, LABELS, 0.0).mean().item() for pair in ("qq", "kk", "vv")]
    assert made("qq", "kk", "vv")(student, teacher, LABELS, 0.0).mean().item() == pytest.approx(sum(single) / 3)


def test_padding_neither_counts_nor_is_seen() -> None:
    student, teacher = outputs(0, (8, 8, 8), -1), outputs(1, (8, 8, 8), -1)
    expected = made("qq", "vv")(student, teacher, LABELS, 0.0).mean()
    for given in (student, teacher):
        for part in (given.attention["decoder", -1].queries, given.attention["decoder", -1].values):
            part[1, LENGTHS[1] :] = 100.0
    assert torch.equal(made("qq", "vv")(student, teacher, LABELS, 0.0).mean(), expected)


def test_gradients_are_finite_where_scores_are_large() -> None:
    student, teacher = outputs(0, (8, 8, 8), -1, causal=True), outputs(1, (8, 8, 8), -1, causal=True)
    queries = student.attention["decoder", -1].queries.mul_(1e3).requires_grad_()
    made("qq")(student, teacher, LABELS, 0.0).mean().backward()
    assert queries.grad is not None and queries.grad.isfinite().all()


STACK = Stack(16, [(16, 8, 8)] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_block": 3}, r"teacher_block must be one of the teacher's 3 blocks \(decoder\), -3\.\.2, got 3"),
        ({"teacher_block": -4}, r"teacher_block must be one of the teacher's 3 blocks"),
        ({"relation_heads": 3}, r"relation_heads must divide .* 16, 8, 8 channels, got 3: choose one of 1, 2, 4, 8$"),
        ({"relations": ["qk"]}, "relations of the teacher's queries, keys need equal widths, got 16, 8, 8"),
    ],
)
def test_what_does_not_fit_the_models_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    values = {"weight": 1.0, "relations": ["qq"], "relation_heads": 2, "teacher_block": -1} | options
    with pytest.raises(ValueError, match=message):
        AttentionRelations(**values).prepare({"decoder": STACK}, {"decoder": STACK}, seed=0)


def test_a_model_without_projections_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="layers of their own, and the student has none: leave the loss out"):
        made("qq").prepare({"decoder": Stack(16, [None])}, {"decoder": STACK}, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relations": ["qx"]}, r"relations must be pairs of q, k and v, such as \[qq, kk, vv\], got \['qx'\]"),
        ({"relations": []}, "relations must be pairs"),
        ({"relation_heads": 0}, "relation_heads must be >= 1, got 0"),
    ],
)
def test_values_that_name_nothing(options: dict[str, Any], message: str) -> None:
    values = {"weight": 1.0, "relations": ["qq"], "relation_heads": 2, "teacher_block": -1} | options
    with pytest.raises(ValueError, match=message):
        AttentionRelations(**values)
