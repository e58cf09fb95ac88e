from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.architecture.base import EXPERTS
from slimexp.cut.expert_use import ExpertUse, expert_use
from slimexp.cut.merge import aligned, cluster, merge
from tests.cut.test_expert_use import MIXTURES, ROWS

Tiny = Callable[..., Any]
BOTH = {"decoder": [0, 1]}


def use(tokens: list[float], means: list[list[float]]) -> ExpertUse:
    return ExpertUse(10.0, torch.tensor(tokens), torch.zeros(len(tokens)), torch.tensor(means))


@pytest.mark.fast
def test_experts_of_like_outputs_follow_the_one_of_most_tokens() -> None:
    of = use([1, 5, 2, 9, 0, 0], [[0.0], [0.1], [5.0], [5.2], [9.0], [0.2]])
    assert cluster(of, 3, 1).tolist() == [1, 1, 3, 3, 4, 1]
    assert cluster(of, 4, 2).tolist() == [1, 1, 2, 3, 3, 5]  # within each half
    assert cluster(of, 6, 2).tolist() == list(range(6))


def test_a_copy_with_its_neurons_in_another_order_becomes_one_with_its_original(tiny: Tiny) -> None:
    family = tiny("causal_lm", model_type="qwen3_moe", **MIXTURES["qwen3_moe"])
    mixture = family.blocks()["decoder"][1].mlp
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gate, up = mixture.experts.gate_up_proj[0].chunk(2)
        mixture.experts.gate_up_proj[4] = torch.cat([gate[order], up[order]])
        mixture.experts.down_proj[4] = mixture.experts.down_proj[0][:, order]
        mixture.gate.weight[4] = mixture.gate.weight[0]
    found = aligned(mixture.experts.gate_up_proj.detach(), mixture.experts.down_proj.detach(),
                    torch.tensor([0, 1, 2, 3, 0, 5]))  # fmt: skip
    assert list(found) == [4] and torch.equal(order[found[4]], torch.arange(16))
    of = expert_use(family, [family.encode(ROWS)], means=True)
    five = {f"model.layers.{i}": torch.arange(5) for i in range(2)}
    small = merge(family, BOTH, {EXPERTS: five}, of).blocks()["decoder"][1].mlp
    assert len(small.gate.weight) == 5
    leaders = cluster(of["model.layers.1"], 5, 1)
    assert leaders[4] == leaders[0]
    whole = [int(leader) for leader in leaders.unique()]
    for name in ("gate_up_proj", "down_proj"):
        expected = getattr(mixture.experts, name).detach()[whole]
        torch.testing.assert_close(getattr(small.experts, name).detach(), expected)
    torch.testing.assert_close(small.gate.weight.detach(), mixture.gate.weight.detach()[whole])


def test_the_mean_is_weighted_by_tokens(tiny: Tiny) -> None:
    family = tiny("causal_lm", model_type="mixtral", **MIXTURES["mixtral"])
    router = family.blocks()["decoder"][0].mlp.gate.weight.detach()
    of = use([3, 1, 0, 0, 0, 0], [[0.0], [0.0], [5.0], [5.0], [9.0], [20.0]])
    kept = {f"model.layers.{i}": torch.arange(4) for i in range(2)}
    small = merge(family, BOTH, {EXPERTS: kept}, dict.fromkeys(kept, of))
    rows = small.blocks()["decoder"][0].mlp.gate.weight.detach()
    torch.testing.assert_close(rows[0], 0.75 * router[0] + 0.25 * router[1])
    torch.testing.assert_close(rows[1], 0.5 * router[2] + 0.5 * router[3])
    torch.testing.assert_close(rows[2:], router[4:])
