"""Channels are scaled where the model stays what it is, for every family that the rules know."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimexp.model.base import Family
from slimexp.model.scaling import Scaling, scalings
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask

BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {  # task, config, scalings of the first block
    "t5": ("seq2seq", {}, 4),
    "gated t5": ("seq2seq", {"feed_forward_proj": "gated-gelu"}, 4),
    "t5 with gelu": ("seq2seq", {"feed_forward_proj": "gelu"}, 3),
    "llama": ("causal_lm", {}, 4),
    "mistral": ("causal_lm", {"model_type": "mistral"}, 4),
    "qwen2": ("causal_lm", {"model_type": "qwen2"}, 4),
    "qwen3": ("causal_lm", {"model_type": "qwen3", "head_dim": 8}, 4),
    "gpt2": ("causal_lm", {"model_type": "gpt2", "n_inner": 48}, 2),
    "bert": ("classification", {}, 1),
    "roberta": ("classification", {"model_type": "roberta", "max_position_embeddings": 66}, 1),
    "distilbert": ("classification", {"model_type": "distilbert", "hidden_dim": 48}, 1),
    "gemma2": ("causal_lm", {"model_type": "gemma2", "head_dim": 8}, 4),
    "gemma3": ("causal_lm", {"model_type": "gemma3_text", "head_dim": 8}, 4),
    "phi3": ("causal_lm", {"model_type": "phi3"}, 4),
    "olmo2": ("causal_lm", {"model_type": "olmo2"}, 2),
    "starcoder2": ("causal_lm", {"model_type": "starcoder2"}, 3),
    "stablelm": ("causal_lm", {"model_type": "stablelm", "qk_layernorm": True}, 4),
    "stablelm parallel": ("causal_lm", {"model_type": "stablelm", "use_parallel_residual": True}, 3),
    "phi": ("causal_lm", {"model_type": "phi", "num_key_value_heads": 2}, 2),
    "mixtral": ("causal_lm", {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}, 2),
    "qwen2-moe": (
        "causal_lm",
        {"model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
        3,
    ),
    "opt": ("causal_lm", {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32}, 4),
    "opt after": (
        "causal_lm",
        {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
        2,
    ),
    "gptj": ("causal_lm", {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, 2),
    "gpt-neox": ("causal_lm", {"model_type": "gpt_neox"}, 2),
    "falcon": ("causal_lm", {"model_type": "falcon"}, 1),
    "falcon new": ("causal_lm", {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    "falcon in turn": ("causal_lm", {"model_type": "falcon", "parallel_attn": False}, 2),
    "bloom": ("causal_lm", {"model_type": "bloom", "n_layer": 2, "n_head": 4}, 2),
    "bart": ("seq2seq", {"model_type": "bart", **BART}, 1),
    "pegasus": ("seq2seq", {"model_type": "pegasus", **BART, "activation_function": "relu"}, 4),
    "longt5": ("seq2seq", {"model_type": "longt5", "local_radius": 4}, 4),
    "modernbert": ("classification", {"model_type": "modernbert", "mlp_bias": True}, 2),
    "electra": ("classification", {"model_type": "electra", "embedding_size": 16}, 1),
    "albert": ("classification", {"model_type": "albert", "embedding_size": 16}, 1),
    "deberta-v2": ("classification", {"model_type": "deberta-v2"}, 1),
    "mpnet": ("classification", {"model_type": "mpnet", "max_position_embeddings": 66}, 1),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> tuple[Family, int]:
    task, values, count = MODELS[request.param]
    family = tiny(task, **values)
    generator = torch.Generator().manual_seed(1)
    for parameter in family.model.parameters():
        if parameter.ndim == 1:  # norms and biases of their own
            parameter.data += 0.5 * torch.rand(parameter.shape, generator=generator)
    return family, count


@torch.no_grad()
def logits(family: Family) -> Tensor:
    return family.forward(family.encode([("one two", "one 2", 0), ("three", "3", 1)]))[0]


def test_the_model_stays_what_it_is(case: tuple[Family, int]) -> None:
    family, count = case
    before = logits(family)
    blocks = [block for stack in family.blocks().values() for block in stack]
    assert len(scalings(family, blocks[0])) == count
    generator = torch.Generator().manual_seed(2)
    for block in blocks:
        for one in scalings(family, block):
            rows = one.channels
            weight = next(iter(one.after.values())).weight.detach().clone()
            one.apply(torch.rand(rows, generator=generator) * 3 + 0.2)
            assert not torch.equal(next(iter(one.after.values())).weight, weight)
    torch.testing.assert_close(logits(family), before, rtol=0, atol=2e-5)


def test_no_input_is_scaled_twice(case: tuple[Family, int]) -> None:
    family, _ = case
    names = [name for stack in family.blocks().values() for block in stack for one in scalings(family, block)
             for name in one.after]  # fmt: skip
    assert len(names) == len(set(names)) and set(names) <= dict(family.model.named_modules()).keys()


@pytest.mark.fast
def test_grouped_queries_share_the_channels_of_a_head() -> None:
    """2 heads of 2 channels, each read as 3 copies."""
    one = Scaling(nn.Linear(1, 4), {"o": nn.Linear(12, 1)}, width=2, copies=3)
    channels = torch.tensor([1.0, 2, 3, 4])
    spread = one.spread(channels)
    assert spread.tolist() == [1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4]
    assert torch.equal(one.shared(spread), channels)
    assert one.shared(torch.arange(12.0)).tolist() == [4, 5, 10, 11]  # the greatest of the copies


def test_a_mask_above_a_weight_is_left_alone(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    for layer in family.compressible().values():
        mask = Mask(shape=layer.weight.shape)
        mask.mask[:, ::3] = False
        attach(layer, "weight", mask)
    before = logits(family)
    block = next(iter(family.blocks().values()))[0]
    for one in scalings(family, block):
        one.apply(torch.full((one.channels,), 2.0))
    torch.testing.assert_close(logits(family), before, rtol=0, atol=1e-5)
    assert all((layer.weight[:, ::3] == 0).all() for layer in family.compressible().values())


def test_a_type_that_is_not_known_names_those_that_are(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    family.model.config.model_type = "gpt_neo"
    block = next(iter(family.blocks().values()))[0]
    with pytest.raises(
        ValueError, match=r"does not know where to scale a model of type gpt_neo.*.* llama, .* smoothing=null"
    ):
        scalings(family, block)
