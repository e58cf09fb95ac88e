from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config

from slimexp.architecture.base import EXPERTS
from slimexp.cut.constraints import admits
from slimexp.cut.experts import router_groups
from slimexp.cut.remove import remove

Tiny = Callable[..., Any]
BOTH = {"decoder": [0, 1]}
MIXTURE = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "v_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "moe_intermediate_size": 12, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_shared_experts": 1, "first_k_dense_replace": 0, "n_group": 2, "topk_group": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (
            torch.arange(5),
            r"experts must be a multiple of n_group=2, .* num_experts_per_tok=3 .* got 5 of 8: keep more",
        ),
        (torch.arange(4), r"at least num_experts_per_tok=3 in the 1 groups that a token may go to; got 4 of 8"),
        (torch.arange(6), r"experts of '' must be as many in each of the n_group=2 groups .* got \[4, 2\]"),
    ],
)
def test_experts_that_a_router_could_not_choose_between(tiny: Tiny, experts: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove(tiny("causal_lm", **MIXTURE), BOTH, {EXPERTS: {"": experts}})


def test_experts_that_the_groups_of_a_router_share() -> None:
    config = DeepseekV3Config()  # 256 in 8 groups, of which a token sees 4, and 8 experts
    assert [n for n in range(8, 41, 4) if admits(config, {EXPERTS: n})] == [16, 24, 32, 40]


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (DeepseekV3Config(n_group=4), 4),
        (DeepseekV2Config(n_group=4, topk_method="greedy"), 1),
        (DeepseekV2Config(n_group=4, topk_method="group_limited_greedy"), 4),
        (DeepseekV2Config(n_group=None, topk_method="group_limited_greedy"), 1),
    ],
    ids=["v3", "v2 greedy", "v2 limited", "v2 without groups"],
)
def test_the_groups_that_a_router_chooses_between(config: Any, groups: int) -> None:
    assert router_groups(config) == groups
