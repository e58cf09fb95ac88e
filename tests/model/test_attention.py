"""Queries, keys and values are those that attention computes with, of every kind of model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from slimexp.loss.base import IGNORE
from slimexp.model import attention
from slimexp.model.attention import attended, captured, projections, stacks

Make = Callable[..., Any]
TEXTS = [("some text", "another one", 0), ("a", "b", 1)]
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "num_key_value_heads": None}  # fmt: skip
PHI3 = {"model_type": "phi3", "pad_token_id": 0}
NEOX = {"model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": None, "max_position_embeddings": 64}  # fmt: skip
BART = {"model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "max_position_embeddings": 64}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
OUTPUTS = ("SelfAttention.o", "self_attn.out_proj", "attn.c_proj", "attention.output.dense", "attention.out_lin")
KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {  # widths of queries, keys and values
    "t5": ("seq2seq", {}, (32, 32, 32)),
    "bart": ("seq2seq", BART, (32, 32, 32)),
    "llama": ("causal_lm", {}, (32, 16, 16)),
    "phi3": ("causal_lm", PHI3, (32, 16, 16)),
    "gpt2": ("causal_lm", GPT2, (32, 32, 32)),
    "bert": ("classification", {}, (32, 32, 32)),
    "distilbert": ("classification", DISTILBERT, (32, 32, 32)),
}


def made(tiny: Make, kind: str) -> Any:
    task, config, _ = KINDS[kind]
    return tiny(task, **config)


@pytest.mark.parametrize("kind", KINDS)
def test_stacks_are_described(tiny: Make, kind: str) -> None:
    found = stacks(made(tiny, kind))
    assert {name: (stack.width, stack.depth) for name, stack in found.items()} == dict.fromkeys(found, (32, 2))
    assert {block for stack in found.values() for block in stack.attention} == {KINDS[kind][2]}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_captured_has_a_row_for_every_token(tiny: Make, kind: str) -> None:
    family = made(tiny, kind)
    batch = family.encode(TEXTS)
    with captured(family, batch, {-1}) as found:
        family.forward(batch)
    assert found.keys() == {(stack, -1) for stack in family.blocks()}
    for (stack, _), block in found.items():
        of_target = family.task == "seq2seq" and stack == "decoder"
        real = batch["labels"] != IGNORE if of_target else batch["attention_mask"] != 0
        assert block.queries.shape == (*real.shape, KINDS[kind][2][0]) and block.queries.requires_grad
        assert block.keys.shape == block.values.shape == (*real.shape, KINDS[kind][2][1])
        assert torch.equal(block.sees.diagonal(dim1=1, dim2=2), real)
        pairs = real[:, :, None] & real[:, None, :]
        assert torch.equal(block.sees, pairs.tril() if stack == "decoder" else pairs)


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "bert", "distilbert"])
def test_attention_of_what_is_captured_is_what_the_model_computes(tiny: Make, kind: str) -> None:
    """The output projection reads ``softmax(q k / sqrt(d)) v`` of the heads, among the tokens that see each other."""
    family = made(tiny, kind)
    for stack, blocks in family.blocks().items():
        inputs: list[Tensor] = []
        output = next(module for name, module in blocks[0].named_modules() if name.endswith(OUTPUTS))
        handle = output.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0]))
        for name, parameter in blocks[0].named_parameters():
            if "relative_attention_bias" in name:
                parameter.data.zero_()
        batch = family.encode(TEXTS)
        with captured(family, batch, {0}) as found, torch.no_grad():
            family.forward(batch)
        handle.remove()
        block = found[stack, 0]
        queries, keys, values = (
            part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (block.queries, block.keys, block.values)
        )
        scale = 1.0 if kind == "t5" else None  # T5 folds it into its weights
        expected = scaled_dot_product_attention(queries, keys, values, attn_mask=block.sees[:, None], scale=scale)
        real = block.sees.diagonal(dim1=1, dim2=2)
        assert torch.allclose(inputs[0][real], expected.transpose(1, 2).flatten(2)[real], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_a_token_that_sees_itself_alone_passes_its_value_on(tiny: Make, kind: str) -> None:
    family = made(tiny, kind)
    inputs: list[Tensor] = []
    family.blocks()["decoder"][0].self_attn.o_proj.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    batch = family.encode(TEXTS)
    with captured(family, batch, {0}) as found, torch.no_grad():
        family.forward(batch)
    values = found["decoder", 0].values[:, 0].view(2, 2, 8).repeat_interleave(2, dim=1)  # a key head serves two
    assert torch.allclose(inputs[0][:, 0], values.flatten(1), atol=1e-6)


def test_self_attention_is_told_from_attention_to_the_encoder(tiny: Make) -> None:
    for kind, own in (("t5", "SelfAttention"), ("bart", "self_attn")):
        family = made(tiny, kind)
        block = family.blocks()["decoder"][0]
        names = {module: name for name, module in block.named_modules()}
        place = projections(block, family.model.config)
        assert place is not None and all(own in names[module] for module in place.modules)


def test_documents_that_share_a_row_do_not_see_each_other(tiny: Make) -> None:
    family = tiny("causal_lm")
    batch = family.encode([("abcdef", None, None)])
    count = batch["input_ids"].shape[1]
    first = count // 2
    batch["position_ids"] = torch.cat([torch.arange(first), torch.arange(count - first)])[None]
    sees = attention._sees(family, batch, "decoder")
    expected = torch.zeros(count, count, dtype=torch.bool)
    expected[:first, :first] = expected[first:, first:] = True
    assert torch.equal(sees[0], expected.tril())


def test_fused_and_interleaved_projections_are_none_of_their_own(tiny: Make) -> None:
    family = tiny("causal_lm", **NEOX)
    assert stacks(family)["decoder"].attention == (None, None)


def test_nothing_is_left_on_the_model(tiny: Make) -> None:
    family = tiny("seq2seq")
    batch = family.encode(TEXTS)
    with pytest.raises(RuntimeError, match="no"), captured(family, batch, {0, -1}):
        raise RuntimeError("no")
    with captured(family, batch, set()) as found:
        family.forward(batch)
    assert found == {} and not any(module._forward_hooks for module in family.model.modules())


def test_a_block_that_is_run_again_is_kept_as_it_ran_first(tiny: Make) -> None:
    """As where activations are checkpointed."""
    family = tiny("classification")
    batch = family.encode(TEXTS)
    with captured(family, batch, {0}) as found:
        family.forward(batch)
        family.forward(family.encode([("x", None, 0)]))
    assert found["encoder", 0].queries.shape[0] == 2


def test_blocks_are_those_of_every_stack(tiny: Make) -> None:
    family = tiny("seq2seq")
    blocks = family.blocks()
    assert attended(family, [-1]) == [blocks["encoder"][1], blocks["decoder"][1]]
    assert all(isinstance(block, nn.Module) for block in attended(family, [0]))
