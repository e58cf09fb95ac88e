"""Every axis of every family: the sliced model is the masked one, and is what plain transformers loads."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from slimexp.architecture.base import EXPERTS, FFN, HEADS, HIDDEN, VOCABULARY, block
from slimexp.architecture.model_type import architecture_of, size
from slimexp.cut.constraints import ScopeIndices, scopes
from slimexp.cut.remove import head_rows, remove, retained_entries
from slimexp.loss.base import IGNORE
from slimexp.model.base import Family

Tiny = Callable[..., Any]
Layers = Mapping[str, Sequence[int]]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
AUTO = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
MIXTURE = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "n_group": 2, "topk_group": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("seq2seq", {}),
    "t5 1.1": ("seq2seq", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("seq2seq", {"model_type": "mt5", "feed_forward_proj": "gated-gelu"}),
    "bert": ("classification", {}),
    "roberta": ("classification", {"model_type": "roberta", "max_position_embeddings": 66}),
    "distilbert": ("classification", {"model_type": "distilbert", "hidden_dim": 48}),
    "gpt2": ("causal_lm", {"model_type": "gpt2", "n_inner": 48}),
    "llama": ("causal_lm", {}),
    "llama with biases": ("causal_lm", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "deepseek-llm": ("causal_lm", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "mistral": ("causal_lm", {"model_type": "mistral"}),
    "qwen2": ("causal_lm", {"model_type": "qwen2"}),
    "qwen3": ("causal_lm", {"model_type": "qwen3", "head_dim": 8}),
    "deepseek-v2": ("causal_lm", {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy", **MIXTURE}),
    "deepseek-v2-lite": ("causal_lm", {"model_type": "deepseek_v2", **MIXTURE, "q_lora_rank": None, "n_group": None}),
    "deepseek-v3": ("causal_lm", {"model_type": "deepseek_v3", **MIXTURE}),
}
AXES = (FFN, HEADS, HIDDEN, EXPERTS, VOCABULARY)
SIZE_OF_A_HEAD = {"bert", "roberta", "distilbert", "gpt2"}
MIXTURES = {"deepseek-v2", "deepseek-v2-lite", "deepseek-v3"}


def can(name: str, axis: str) -> bool:
    if axis == EXPERTS:
        return name in MIXTURES
    return axis in (FFN, VOCABULARY) or name not in SIZE_OF_A_HEAD


CUTS = [(name, axis) for name in MODELS for axis in AXES if can(name, axis)]


def model(tiny: Tiny, name: str) -> Family:
    """Three blocks a stack, and no two parameters of the same numbers."""
    task, values = MODELS[name]
    deep = {"num_layers": 3, "num_decoder_layers": 3} if task == "seq2seq" else {"num_hidden_layers": 3}
    family: Family = tiny(task, **deep, **values)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in {tensor.data_ptr(): tensor for tensor in family.model.state_dict().values()}.values():
            if tensor.is_floating_point() and (tensor.ndim == 1 or "deepseek" in name):
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return family


def some(total: int, count: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def choose(family: Family, *axes: str) -> dict[str, ScopeIndices]:
    """At random, and not the same in any two scopes."""
    config = family.model.config
    kept: dict[str, ScopeIndices] = {}
    for axis in axes:
        if axis == HEADS:
            groups = architecture_of(config).groups
            whole = size(config, groups)
            kept |= head_rows(
                config, {s: some(whole, whole // 2, i) for i, s in enumerate(scopes(family.model, HEADS))}
            )
        elif axis == EXPERTS:  # three of four in each half
            halves = {s: (some(4, 3, i), some(4, 3, i + 10) + 4) for i, s in enumerate(scopes(family.model, axis))}
            kept[EXPERTS] = {s: torch.cat(half) for s, half in halves.items()}
        elif axis == VOCABULARY:
            batch = family.encode(ROWS)
            used = torch.cat([batch["input_ids"].flatten(), batch["labels"].flatten(), torch.tensor([0, 1, 2, 100])])
            kept[VOCABULARY] = {"": used[used >= 0].unique()}  # padding, </s>, <unk> and one that is not used
        else:
            count = {FFN: 20, HIDDEN: 24}[axis]
            names = [""] if axis == HIDDEN else scopes(family.model, axis)
            kept[axis] = {s: some(size(config, axis), count, i) for i, s in enumerate(names)}
    return kept


@torch.no_grad()
def masked(family: Family, layers: Layers, kept: Mapping[str, ScopeIndices]) -> Family:
    """A copy of the same shape with zeros wherever ``remove`` would cut, and with blocks that pass on what they get."""
    twin = copy.deepcopy(family)
    architecture = architecture_of(family.model.config)
    for name, tensor in twin.model.state_dict().items():
        for dimension, axis in enumerate(architecture.of(name)):
            indices = retained_entries(axis, name, family.model.config, kept)
            if indices is not None and axis != EXPERTS:
                dead = torch.ones(tensor.shape[dimension], dtype=torch.bool).index_fill(0, indices, False)
                tensor.movedim(dimension, 0)[dead] = 0
    for stack, blocks in twin.blocks().items():
        for i, layer in enumerate(blocks):
            if i not in layers[stack]:
                layer.register_forward_hook(
                    lambda _, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0]
                )
    for name, gate in twin.model.named_modules():
        if EXPERTS in kept and name.endswith("mlp.gate"):
            close(gate, kept[EXPERTS][block(name, architecture)])
    return twin


def close(gate: nn.Module, open_to: Tensor) -> None:
    """Let a router send no token to other experts."""

    class Closed(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is functional.linear:
                shut = torch.ones(result.shape[-1], dtype=torch.bool).index_fill(0, open_to, False)
                result = result.masked_fill(shut, -torch.inf)
            return result

    route = gate.forward

    def forward(hidden: Tensor) -> Any:
        with Closed():
            return route(hidden)

    gate.forward = forward
    if hasattr(gate, "e_score_correction_bias"):  # chosen by sigmoid + bias
        shut = torch.ones(len(gate.e_score_correction_bias), dtype=torch.bool).index_fill(0, open_to, False)
        gate.e_score_correction_bias[shut] = -torch.inf


@torch.no_grad()
def logits(family: Family, kept: Mapping[str, ScopeIndices] | None = None) -> Tensor:
    """At tokens other than padding; of the retained part of a smaller vocabulary."""
    batch = family.encode(ROWS)
    given = family.forward(batch)[0][batch["labels"] != IGNORE]
    return given[:, kept[VOCABULARY][""]] if kept and VOCABULARY in kept and family.task != "classification" else given


def every(family: Family) -> dict[str, list[int]]:
    return {stack: list(range(len(blocks))) for stack, blocks in family.blocks().items()}


def assert_same(small: Family, masked: Family, kept: Mapping[str, ScopeIndices]) -> None:
    expected = logits(masked, kept)
    assert expected.std() > 1e-3, "nothing is compared"
    unit = max(1.0, float(expected.std()))  # heads of T5 1.1 that were never trained give logits in the tens
    torch.testing.assert_close(logits(small), expected, atol=1e-5 * unit, rtol=1e-5)


# --- masked is sliced ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "axis"), CUTS)
def test_sliced_is_masked(tiny: Tiny, name: str, axis: str) -> None:
    family = model(tiny, name)
    layers, kept = every(family), choose(family, axis)
    small = remove(family, layers, kept)
    assert parameters(small) < parameters(family)
    assert_same(small, masked(family, layers, kept), kept)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_that_are_gone_passed_on_what_they_got(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    layers = {stack: [0, 2] for stack in family.blocks()}
    small = remove(family, layers, {})
    assert all(len(blocks) == 2 for blocks in small.blocks().values())
    assert_same(small, masked(family, layers, {}), {})


# --- plain transformers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_all_at_once_saved_loaded_and_generating(tiny: Tiny, name: str, tmp_path: Path) -> None:
    family = model(tiny, name)
    layers = {stack: [0, 2] for stack in family.blocks()}
    kept = choose(family, *(axis for axis in AXES if can(name, axis)))
    small = remove(family, layers, kept)
    assert_same(small, masked(family, layers, kept), kept)
    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plain = type(small)(AUTO[family.task].from_pretrained(tmp_path).eval(), tokenizer, max_length=64)
    assert type(plain.model) is type(family.model) and parameters(plain) == parameters(small)
    torch.testing.assert_close(logits(plain), logits(small), atol=1e-5, rtol=1e-5)
    if family.task == "classification":
        return
    batch = plain.encode(ROWS[:1])
    inputs = {key: batch[key][:, :-1] for key in ("input_ids", "attention_mask")}
    cached, anew = (plain.model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=cache)
                    for cache in (True, False))  # fmt: skip
    assert torch.equal(cached, anew)


def parameters(family: Family) -> int:
    return sum(parameter.numel() for parameter in family.model.parameters())
