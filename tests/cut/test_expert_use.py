from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from slimexp.cut.expert_use import expert_importance, expert_use, mixtures, per_group, token_shares

Tiny = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
DEEPSEEK = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "v_head_dim": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 2,
}  # fmt: skip
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**DEEPSEEK, "topk_method": "group_limited_greedy"},
    "deepseek_v3": DEEPSEEK,
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen2_moe": {**QWEN, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**QWEN, "head_dim": 8},
}


def output(experts: Any, expert: int, x: Tensor) -> Tensor:
    """What one expert makes of tokens, written out."""
    gate, up = linear(x, experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return linear(experts.act_fn(gate) * up, experts.down_proj[expert])


@pytest.mark.parametrize("kind", MIXTURES)
@torch.no_grad()
def test_the_saliency_is_the_mean_of_gate_times_norm_of_the_output_over_an_experts_own_tokens(
    tiny: Tiny, kind: str
) -> None:
    family = tiny("causal_lm", model_type=kind, **MIXTURES[kind])
    batches = [family.encode(ROWS[:1]), family.encode(ROWS[1:2])]
    seen: dict[str, list[tuple[Tensor, ...]]] = {}
    modules = mixtures(family)
    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, []).append(given))
        for name, module in modules.items()
    ]
    for batch in batches:
        family.forward(batch)
    for hook in hooks:
        hook.remove()
    use = expert_use(family, batches, means=True)
    assert len(use) == len(modules) == (1 if kind.startswith("deepseek") else 2)
    for (name, experts), one in zip(modules.items(), use.values(), strict=True):
        x, chosen, gates = (torch.cat(parts) for parts in zip(*seen[name], strict=True))
        for expert in range(len(experts.down_proj)):
            token, place = torch.where(chosen == expert)
            weighted = gates[token, place] * output(experts, expert, x[token]).norm(dim=1)
            expected = weighted.mean() if len(token) else torch.tensor(0.0)
            assert float(one.saliency[expert]) == pytest.approx(float(expected), rel=1e-4)
            assert float(one.tokens[expert]) == len(token)
            torch.testing.assert_close(one.means[expert].float(), output(experts, expert, x).mean(0))
        assert float(one.share.sum()) == pytest.approx(2)
    names = token_shares(use)
    assert len(names) == len(modules) * len(experts.down_proj) and "model.layers.1.experts.5" in names
    scores = expert_importance(family, batches)
    assert all(torch.equal(scores[name], use[name].saliency) for name in scores)


def test_without_text_the_norm_of_the_down_projection_counts(tiny: Tiny) -> None:
    family = tiny("causal_lm", model_type="mixtral", **MIXTURES["mixtral"])
    with torch.no_grad():
        family.blocks()["decoder"][1].mlp.experts.down_proj[4] *= 10
    scores = expert_importance(family, None)
    assert list(scores) == ["model.layers.0", "model.layers.1"] and int(scores["model.layers.1"].argmax()) == 4


@pytest.mark.fast
def test_every_prefix_has_as_many_of_each_group() -> None:
    order = per_group(torch.tensor([1.0, 9.0, 3.0, 5.0, 8.0, 0.0]), 2)
    assert order.tolist() == [1, 4, 2, 3, 0, 5]
    assert per_group(torch.tensor([1.0, 9.0, 3.0]), 1).tolist() == [1, 2, 0]
