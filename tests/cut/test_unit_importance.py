from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.architecture.base import FFN, HEADS
from slimexp.architecture.model_type import architecture_of
from slimexp.cut.unit_importance import by_scope, expert_importance, hidden_importance, reader_importance

Tiny = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
MIXTURE = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "v_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "moe_intermediate_size": 12, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 2,
}  # fmt: skip


def test_the_importance_of_a_neuron_is_its_mean_activation_times_the_norm_of_its_readers(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    reader = family.blocks()["decoder"][0].mlp.down_proj
    inputs: list[torch.Tensor] = []
    handle = reader.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    with torch.no_grad():
        family.forward(family.encode(ROWS))
    handle.remove()
    norm = reader.weight.detach().norm(dim=0)
    expected = norm * inputs[0].abs().mean((0, 1))
    name = "model.layers.0.mlp.down_proj"
    torch.testing.assert_close(reader_importance(family, FFN, [family.encode(ROWS)])[name], expected)
    assert torch.equal(reader_importance(family, FFN, [])[name], norm)


def test_weights_of_gpt2_hold_inputs_first(tiny: Tiny) -> None:
    family = tiny("causal_lm", model_type="gpt2", n_inner=40)
    scores = reader_importance(family, FFN, [])
    assert {len(score) for score in scores.values()} == {40}


def test_the_importance_of_experts_adds_up_to_the_weights_that_tokens_give(tiny: Tiny) -> None:
    family = tiny("causal_lm", **MIXTURE)
    architecture = architecture_of(family.model.config)
    batch = family.encode(ROWS)
    scores = expert_importance(family, architecture, [batch])
    assert scores.keys() == {"model.layers.1"} and len(scores["model.layers.1"]) == 8
    tokens = batch["input_ids"].numel()
    assert float(scores["model.layers.1"].sum()) == pytest.approx(
        tokens * family.model.config.routed_scaling_factor, rel=1e-5
    )
    torch.testing.assert_close(expert_importance(family, architecture, [batch] * 2)["model.layers.1"],
                               2 * scores["model.layers.1"])  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
    ],
)
def test_experts_of_other_types_than_deepseek(tiny: Tiny, kind: str, values: dict[str, int]) -> None:
    family = tiny("causal_lm", model_type=kind, num_experts_per_tok=2, **values)
    architecture = architecture_of(family.model.config)
    batch = family.encode(ROWS)
    scores = expert_importance(family, architecture, [batch])
    assert {name: len(score) for name, score in scores.items()} == {f"model.layers.{i}": 4 for i in range(2)}
    assert all(float(score.sum()) > 0 for score in scores.values())


def test_every_norm_has_one_vote_on_channels(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    scores = hidden_importance(family, [family.encode(ROWS)])
    assert scores.shape == (32,) and float(scores.mean()) == pytest.approx(5, rel=1e-5)  # two norms a block, one behind


def test_layers_that_share_a_scope_count_alike(tiny: Tiny) -> None:
    architecture = architecture_of(tiny("seq2seq").model.config)
    names = [f"encoder.block.{i}.layer.0.SelfAttention.o" for i in (0, 1)]
    scores = dict(zip(names, (torch.tensor([1.0, 3.0]), torch.tensor([300.0, 100.0])), strict=True))
    assert {name: score.tolist() for name, score in by_scope(scores, HEADS, architecture).items()} == {
        "encoder": [2.0, 2.0]
    }
    alone = {"encoder.block.1.layer.1.DenseReluDense.wo": torch.tensor([5.0, 7.0])}
    assert by_scope(alone, FFN, architecture)["encoder.block.1"].tolist() == [5.0, 7.0]
