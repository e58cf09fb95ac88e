"""Fused kernels give the logits of transformers, for dense, packed and float8 weights, and refuse other models."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from slimexp.decode import fused
from slimexp.decode.base import Decoder
from slimexp.decode.fused import Attention, FeedForward, Fused, Map, refusal
from slimexp.decode.packed_linear import PackedLinear
from slimexp.decode.static_cache import cache_arguments
from slimexp.model.widths import KEY

Make = Callable[..., Any]
UNLIKE = {KEY: {"ffn": {"decoder": [64, 160]}}}
PARTLY = {KEY: {"heads": {"decoder": [0, 2]}, "ffn": {"decoder": [160, 0]}}}
MAPS = {
    KEY: {
        "heads": {"decoder": [0, 2]},
        "attention_rank": {"decoder": [32, 0]},
        "ffn": {"decoder": [160, 0]},
        "ffn_rank": {"decoder": [0, 64]},
    }
}
UNLIKE_HEADS = {KEY: {"heads": {"decoder": [1, 2]}}}


@pytest.mark.fast
def test_what_does_not_fit_is_refused(model_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=67, n_embd=16, n_layer=1, n_head=2))
    monkeypatch.setattr(fused, "has_triton", lambda: False)
    assert refusal(gpt2, 16) == "triton is not installed"
    monkeypatch.setattr(fused, "has_triton", lambda: True)
    assert "gpt2" in (refusal(gpt2, 16) or "")
    sliding = model_of("mistral", sliding_window=8)
    assert "8 positions" in (refusal(sliding, 16) or "") and refusal(sliding, 8) is None
    assert "a head has 24 channels" in (refusal(model_of("qwen3", head_dim=24), 16) or "")
    assert "know silu, not gelu" in (refusal(model_of("llama", hidden_act="gelu"), 16) or "")
    model = model_of("llama")
    assert refusal(model, 16) is None
    assert refusal(model_of("llama", **MAPS), 16) is None
    model.set_submodule("model.layers.1.mlp.up_proj", nn.Identity())
    assert "model.layers.1.mlp.up_proj is neither a linear layer" in (refusal(model, 16) or "")


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_prompt_is_read_with_what_is_behind_it_unseen(
    model_of: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys and values of prompts of any length; graphs, which take a GPU, are the work itself here."""
    graphs: list[int] = []

    def capture(work: Callable[[], None], device: torch.device, pool: object) -> SimpleNamespace:
        graphs.append(1)
        return SimpleNamespace(replay=work)

    monkeypatch.setattr(fused, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(Fused, "advance", lambda *_, **__: None)
    model = model_of(name, **({"sliding_window": 100} if name == "mistral" else {}))
    steps = Fused(model, 100)
    for count in (2, 17, 70, 33, 99):
        ids = torch.randint(67, (1, count), generator=torch.Generator().manual_seed(count))
        steps.prefill(ids)
        with torch.no_grad():
            expected = DynamicCache()
            model(input_ids=ids[:, :-1], **cache_arguments(model, expected))
        for part, layer in zip(steps.attentions, expected.layers, strict=True):
            torch.testing.assert_close(part.keys[:, : count - 1], layer.keys[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(part.values[:, : count - 1], layer.values[0], rtol=1e-4, atol=1e-4)
    assert len(graphs) == 3  # of 32, 96 and 99 tokens


def test_blocks_of_unlike_widths_write_their_neurons_to_places_of_their_own(
    model_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    steps = Fused(model_of("llama", **UNLIKE), 32)
    assert [part.out.columns for part in steps.parts if isinstance(part, FeedForward)] == [64, 160]
    assert {width: len(neurons.values) for width, neurons in steps.neurons.items()} == {64: 64, 160: 160}


def test_blocks_of_unlike_heads_have_caches_of_their_own(model_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    steps = Fused(model_of("llama", **UNLIKE_HEADS), 32)
    assert [(part.heads, part.kv_heads, len(part.keys)) for part in steps.attentions] == [(2, 1, 1), (4, 2, 2)]
    assert {width: len(out.values) for width, out in steps.attended.items()} == {64: 64, 128: 128}
    assert {rows: len(out.values) for rows, out in steps.qkv.items()} == {128: 128, 256: 256}


def test_what_blocks_do_without_is_no_part_of_a_step(model_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(Fused, "advance", lambda *_, **__: None)
    model = model_of("llama", **PARTLY)
    steps = Fused(model, 32)
    first, second = model.model.layers
    assert [type(part) for part in steps.parts] == [FeedForward, Attention]
    assert torch.equal(steps.first_gain, first.post_attention_layernorm.weight)
    assert torch.equal(steps.parts[0].next_gain, second.input_layernorm.weight)
    assert torch.equal(steps.parts[1].next_gain, model.model.norm.weight)
    ids = torch.randint(67, (1, 9), generator=torch.Generator().manual_seed(0))
    steps.SHORT = 0
    steps.prefill(ids)
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids[:, :-1], **cache_arguments(model, cache))
    torch.testing.assert_close(steps.attentions[0].keys[:, :8], cache.layers[0].keys[0], rtol=1e-4, atol=1e-4)


def test_maps_are_parts_in_the_place_of_layers(model_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    steps = Fused(model_of("llama", **MAPS), 32)
    assert [type(part) for part in steps.parts] == [Map, FeedForward, Attention, Map]
    assert {width: len(neurons.values) for width, neurons in steps.neurons.items()} == {32: 32, 160: 160, 64: 64}


@pytest.mark.gpu
@pytest.mark.parametrize("bits, group", [(16, None), (8, None), (8, 32), (4, 32), (4, None)])
@pytest.mark.parametrize(
    "name, values",
    [
        ("llama", {}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("llama", UNLIKE),
        ("qwen3", UNLIKE_HEADS),
        ("llama", PARTLY),
        ("llama", MAPS),
    ],
)
def test_fused_kernels_give_the_logits_of_transformers(
    rounded: Make, model_of: Make, name: str, values: dict[str, Any], bits: int, group: int | None
) -> None:
    pytest.importorskip("triton")
    model = model_of(name, "cuda", **values)
    if bits < 16:
        for key, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                packed = rounded(layer, bits, group)
                if group:
                    packed = packed._replace(zero=torch.randint(-3, 4, packed.scale.shape, device="cuda"))
                model.set_submodule(key, PackedLinear(packed))
    tolerance = 1e-3 if bits == 16 else 2e-2  # an input halfway between two integers may fall to either
    decoder = Decoder(model, 256)
    assert decoder.label == "fused kernels"
    ids = torch.randint(67, (1, 70), generator=torch.Generator().manual_seed(1)).cuda()
    decoder.prefill(ids)
    for count in (1, 9, 150):  # one part of the cache, two, four
        decoder.decode(count)
        at = int(decoder.steps.position)
        with torch.no_grad():
            expected = model(input_ids=decoder.steps.tokens[:, :at]).logits[0, -1]
        assert (decoder.steps.logits - expected).norm() <= tolerance * expected.norm()


@pytest.mark.gpu
def test_layers_packed_differently_stand_beside_each_other(rounded: Make, model_of: Make, in_float8: Make) -> None:
    pytest.importorskip("triton")
    model = model_of("llama", "cuda")
    for key, layer in list(model.named_modules()):
        if key.endswith(("down_proj", "v_proj")) or (isinstance(layer, nn.Linear) and "layers.1.self_attn" in key):
            model.set_submodule(key, PackedLinear(rounded(layer, 8 if key.endswith("v_proj") else 4, 32)))
        elif key.endswith("up_proj"):
            model.set_submodule(key, in_float8(layer))
    decoder = Decoder(model, 96)
    decoder.prefill(torch.randint(67, (1, 30), generator=torch.Generator().manual_seed(1)).cuda())
    decoder.decode(40)
    with torch.no_grad():
        expected = model(input_ids=decoder.steps.tokens[:, :69]).logits[0, -1]
    assert decoder.steps.logits is not None
    assert (
        decoder.steps.logits - expected
    ).norm() <= 5e-2 * expected.norm()  # beside a dense layer no input is rounded


@pytest.mark.gpu
def test_float8_weights_decode_without_rounding_inputs(model_of: Make, in_float8: Make) -> None:
    pytest.importorskip("triton")
    model = model_of("qwen2", "cuda")
    for key, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and key != "lm_head":
            model.set_submodule(key, in_float8(layer))
    decoder = Decoder(model, 96)
    assert decoder.label == "fused kernels"
    decoder.prefill(torch.randint(67, (1, 30), generator=torch.Generator().manual_seed(1)).cuda())
    decoder.decode(40)
    with torch.no_grad():
        expected = model(input_ids=decoder.steps.tokens[:, :69]).logits[0, -1]
    assert (decoder.steps.logits - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_bfloat16_model_decodes_as_its_own_rounding_allows(rounded: Make, model_of: Make, bits: int) -> None:
    pytest.importorskip("triton")
    model = model_of("qwen2", "cuda").bfloat16()
    if bits < 16:
        for key, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                model.set_submodule(key, PackedLinear(rounded(layer, bits, None)))
    decoder = Decoder(model, 96)
    decoder.prefill(torch.randint(67, (1, 30), generator=torch.Generator().manual_seed(1)).cuda())
    decoder.decode(40)
    with torch.no_grad():
        expected = model(input_ids=decoder.steps.tokens[:, :69]).logits[0, -1].float()
    assert decoder.steps.logits is not None
    tolerance = 5e-2 if bits == 16 else 0.15
    assert (decoder.steps.logits - expected).norm() <= tolerance * expected.norm()
