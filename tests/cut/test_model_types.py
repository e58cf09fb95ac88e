"""Every model type that can be cut: what is sliced is what is masked, and plain transformers loads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from slimexp.architecture.base import FFN, HEADS, LAYERS
from slimexp.architecture.model_type import ARCHITECTURES, architecture_of, size
from slimexp.cut.constraints import scopes
from slimexp.cut.proof import PROVABLE, example, logits, masked, prove, randomize
from slimexp.cut.remove import head_rows, remove
from slimexp.cut.simulate import simulated
from slimexp.model.base import Family
from slimexp.model.widths import refusal, widths_of

Tiny = Callable[..., Any]
AUTO = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
BART = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
T5 = {"num_layers": 3, "num_decoder_layers": 3}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURE = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "n_group": 2, "topk_group": 1,
}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> task, type, config
    "albert": ("classification", "albert", {"embedding_size": 16}),
    "bart": ("seq2seq", "bart", BART),
    "bert": ("classification", "bert", {}),
    "bloom": ("causal_lm", "bloom", {"n_layer": 3, "n_head": 4}),
    "camembert": ("classification", "camembert", {"max_position_embeddings": 66}),
    "deberta-v2": (
        "classification", "deberta-v2",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True,
         "norm_rel_ebd": "layer_norm", "position_biased_input": False, "max_relative_positions": -1},
    ),
    "deberta-v2 with convolution": ("classification", "deberta-v2", {"conv_kernel_size": 3, "embedding_size": 16}),
    "deepseek-v2": ("causal_lm", "deepseek_v2", {"topk_method": "group_limited_greedy", **MIXTURE}),
    "deepseek-v3": ("causal_lm", "deepseek_v3", MIXTURE),
    "distilbert": ("classification", "distilbert", {"hidden_dim": 48, "n_layers": 3}),
    "electra": ("classification", "electra", {"embedding_size": 16}),
    "falcon": ("causal_lm", "falcon", {"ffn_hidden_size": 48}),
    "falcon new": (
        "causal_lm", "falcon",
        {"ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    ),
    "falcon in turn": ("causal_lm", "falcon", {"parallel_attn": False, "alibi": True, "multi_query": False}),
    "gemma": ("causal_lm", "gemma", {"head_dim": 8}),
    "gemma untied": ("causal_lm", "gemma", {"head_dim": 8, "tie_word_embeddings": False}),
    "gemma2": ("causal_lm", "gemma2", {"head_dim": 8, "sliding_window": 4, "layer_types": SLIDING}),
    "gemma3": ("causal_lm", "gemma3_text", {"head_dim": 8, "sliding_window": 4, "layer_types": SLIDING}),
    "gpt2": ("causal_lm", "gpt2", {"n_inner": 48, "n_layer": 3}),
    "gpt-neox": ("causal_lm", "gpt_neox", {}),
    "gptj": ("causal_lm", "gptj", {**GPT, "n_inner": 48, "rotary_dim": 4, "n_positions": 64}),
    "granite": ("causal_lm", "granite", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "llama": ("causal_lm", "llama", {"attention_bias": True, "mlp_bias": True}),
    "longt5": ("seq2seq", "longt5", {**T5, "local_radius": 4}),
    "longt5 with global tokens": (
        "seq2seq", "longt5",
        {**T5, "local_radius": 4, "global_block_size": 4, "encoder_attention_type": "transient-global"},
    ),
    "m2m-100": ("seq2seq", "m2m_100", BART),
    "marian": ("seq2seq", "marian", BART),
    "mbart": ("seq2seq", "mbart", BART),
    "mistral": ("causal_lm", "mistral", {}),
    "mixtral": ("causal_lm", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "modernbert": ("classification", "modernbert", {"layer_types": ["full_attention", *SLIDING[:2]], "mlp_bias": True,
                                                    "local_attention": 8}),
    "mpnet": ("classification", "mpnet", {"max_position_embeddings": 66}),
    "mt5": ("seq2seq", "mt5", {**T5, "feed_forward_proj": "gated-gelu"}),
    "olmo2": ("causal_lm", "olmo2", {}),
    "opt": ("causal_lm", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt after": ("causal_lm", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "pegasus": ("seq2seq", "pegasus", BART),
    "phi": ("causal_lm", "phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi with norms": ("causal_lm", "phi", {"num_key_value_heads": 2, "qk_layernorm": True}),
    "phi3": ("causal_lm", "phi3", {"partial_rotary_factor": 0.5}),
    "qwen2": ("causal_lm", "qwen2", {}),
    "qwen2-moe": (
        "causal_lm", "qwen2_moe",
        {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24, "mlp_only_layers": [2]},
    ),
    "qwen3": ("causal_lm", "qwen3", {"head_dim": 8}),
    "qwen3-moe": ("causal_lm", "qwen3_moe", {**EXPERTS, "num_experts": 4, "head_dim": 8, "decoder_sparse_step": 2}),
    "roberta": ("classification", "roberta", {"max_position_embeddings": 66}),
    "stablelm": ("causal_lm", "stablelm", {"num_key_value_heads": 2, "qk_layernorm": True}),
    "stablelm parallel": ("causal_lm", "stablelm", {"num_key_value_heads": 2, "use_parallel_residual": True}),
    "starcoder2": ("causal_lm", "starcoder2", {}),
    "t5": ("seq2seq", "t5", T5),
    "umt5": ("seq2seq", "umt5", T5),
    "xlm-roberta": ("classification", "xlm-roberta", {"max_position_embeddings": 66}),
}  # fmt: skip


def model(tiny: Tiny, name: str) -> Family:
    task, kind, values = MODELS[name]
    deep = {} if task == "seq2seq" else {"num_hidden_layers": 3}
    return randomize(tiny(task, **deep | {"model_type": kind} | values))


def axes(family: Family) -> list[str]:
    """What the type says that it can lose."""
    config = family.model.config
    architecture = architecture_of(config)
    names = {axis: architecture.groups if axis == "heads" else axis for axis in PROVABLE}
    return [axis for axis, units in names.items() if architecture.can_cut(units, config)]


def test_every_declared_type_is_here() -> None:
    assert {kind for _, kind, _ in MODELS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", MODELS)
def test_sliced_is_masked_is_simulated(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    for axis in axes(family):
        prove(family, axis)


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_loads_and_generates(tiny: Tiny, name: str, tmp_path: Path) -> None:
    """Whatever can go has gone at once."""
    family = model(tiny, name)
    layers: dict[str, list[int]] = {stack: list(range(len(blocks))) for stack, blocks in family.blocks().items()}
    kept: dict[str, Any] = {}
    for axis in axes(family):
        some, units = example(family, axis)
        kept |= units
        layers = some if axis == LAYERS else layers
    small = remove(family, layers, kept)
    small.model.save_pretrained(tmp_path)
    plain = type(small)(AUTO[family.task].from_pretrained(tmp_path).eval(), small.tokenizer, max_length=64)
    torch.testing.assert_close(logits(plain), logits(small), atol=1e-4, rtol=1e-4)
    if family.task != "classification":
        batch = plain.encode([("one", "two!", 0)])
        inputs = {key: batch[key][:, :-1] for key in ("input_ids", "attention_mask")}
        cached, anew = (plain.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=c)
                        for c in (True, False))  # fmt: skip
        assert torch.equal(cached, anew)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_keep_unlike_numbers_of_neurons(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    if FFN not in axes(family):
        return
    whole = size(family.model.config, FFN)
    layers = {stack: list(range(len(blocks))) for stack, blocks in family.blocks().items()}
    kept = {FFN: {part: torch.arange(i, whole - 2 * i) for i, part in enumerate(scopes(family.model, FFN))}}
    small = remove(family, layers, kept)
    widths = widths_of(small.model.config).get(FFN, {})
    assert len({units for each in widths.values() for units in each}) == len(kept[FFN]) or len(kept[FFN]) == 1
    expected = logits(masked(family, layers, kept))
    torch.testing.assert_close(logits(small), expected, atol=1e-4, rtol=1e-4)
    with simulated(family, layers, kept):
        torch.testing.assert_close(logits(family), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_keep_unlike_numbers_of_heads_or_say_why_not(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    config = family.model.config
    if "heads" not in axes(family):
        assert refusal(config, HEADS) is not None
        return
    groups = architecture_of(config).groups
    whole, parts = size(config, groups), scopes(family.model, HEADS)
    layers = {stack: list(range(len(blocks))) for stack, blocks in family.blocks().items()}
    kept = dict(head_rows(config, {part: torch.arange(i % 2, whole) for i, part in enumerate(parts)}))
    if (reason := refusal(config, HEADS)) is not None:
        with pytest.raises(ValueError, match=f"heads must be as many everywhere, {reason}; got"):
            remove(family, layers, kept)
        return
    small = remove(family, layers, kept)
    assert widths_of(small.model.config) == {HEADS: {"decoder": [whole, whole - 1, whole]}}
    expected = logits(masked(family, layers, kept))
    torch.testing.assert_close(logits(small), expected, atol=1e-4, rtol=1e-4)
    with simulated(family, layers, kept):
        torch.testing.assert_close(logits(family), expected, atol=1e-4, rtol=1e-4)
    ids = torch.arange(3, 9)[None]
    cached, anew = (small.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cache)
                    for cache in (True, False))  # fmt: skip
    assert torch.equal(cached, anew)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["phi3", "olmo2", "gemma2", "mixtral", "bart", "modernbert"])
def test_a_model_on_a_gpu_is_cut_as_on_the_cpu(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    for axis in axes(family):
        layers, kept = example(family, axis)
        expected = remove(family, layers, kept).model.state_dict()
        torch.nn.Module.to(family.model, "cuda")
        small = remove(family, layers, kept)
        assert small.device.type == "cuda"
        for key, tensor in small.model.state_dict().items():
            torch.testing.assert_close(tensor.cpu(), expected[key])
        family.model.cpu()
