"""The decode loop says the tokens that transformers says, whichever way it runs."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from slimexp.decode import fused
from slimexp.decode.base import Decoder
from slimexp.decode.fused import Fused, refusal
from slimexp.decode.packed_linear import PackedLinear
from slimexp.decode.static_cache import Captured, cached
from slimexp.kernel.base import FLOAT8, Packed
from slimexp.kernel.scaled_mm import ScaledMM

SIZES = {
    "vocab_size": 67, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 64}),
}


def model_of(name: str, device: str = "cpu") -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config, more = MODELS[name]
    model = kind(config(**SIZES, **more)).eval()
    for key, parameter in model.named_parameters():
        if "norm" in key or "bias" in key:
            nn.init.normal_(parameter, 1.0, 0.2)
    return model.to(device)


def in_float8(layer: nn.Linear) -> ScaledMM:
    """Its inputs left in float."""
    scale = layer.weight.detach().abs().amax(-1, keepdim=True) / 448
    return ScaledMM(Packed((layer.weight.detach() / scale).to(FLOAT8), scale, None, 8, layer.bias, None))


@pytest.mark.fast
def test_a_model_on_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="CUDA"):
        Decoder(model_of("llama"), 16)


@pytest.mark.fast
def test_a_model_whose_cache_is_rounded_is_refused() -> None:
    model = model_of("llama")
    model.config.cache_bits = 8
    with pytest.raises(ValueError, match="the decode loop caches keys and values as floats, and this model in 8 bits"):
        Decoder(model, 16)


@pytest.mark.fast
def test_what_does_not_fit_is_told() -> None:
    pytest.importorskip("triton", reason="without Triton nothing fits")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=67, n_embd=16, n_layer=1, n_head=2))
    assert "gpt2" in (refusal(gpt2, 16) or "")
    sliding = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    assert "8 positions" in (refusal(sliding, 16) or "") and refusal(sliding, 8) is None


def test_steps_over_a_static_cache_are_those_of_generate() -> None:
    model = model_of("llama")
    ids = torch.randint(67, (1, 9), generator=torch.Generator().manual_seed(1))
    steps = Captured(model, 24)
    for _ in range(2):  # the second time over what the first left
        steps.prefill(ids)
        for _ in range(12):
            steps.step()
        theirs = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        assert steps.tokens[:21].tolist() == theirs[0].tolist()


def windowed() -> PreTrainedModel:
    """A model whose every other block looks back 8 positions only."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=32, sliding_window=8)).eval()


def test_steps_go_on_beyond_a_sliding_window_as_one_and_the_same_work() -> None:
    """A graph repeats what its first step did: no layer may change its way when the window is full."""
    model = windowed()
    steps = Captured(model, 40)
    assert not any(steps.cache.is_sliding)
    steps.prefill(torch.randint(67, (1, 5), generator=torch.Generator().manual_seed(1)))
    for _ in range(30):
        steps.step()
        with torch.no_grad():
            theirs = model(input_ids=steps.tokens[None, : int(steps.position)]).logits[0, -1]
        assert steps.logits is not None
        torch.testing.assert_close(steps.logits[0, -1], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_graph_decodes_beyond_a_sliding_window() -> None:
    model = windowed().cuda()  # type: ignore[call-arg]
    decoder = Decoder(model, 40)
    assert decoder.label == Captured.label
    decoder.prefill(torch.randint(67, (1, 5), generator=torch.Generator().manual_seed(1)).cuda())
    for _ in range(30):
        decoder.decode(1)
        with torch.no_grad():
            theirs = model(input_ids=decoder.steps.tokens[None, : int(decoder.steps.position)]).logits[0, -1]
        assert decoder.steps.logits is not None
        assert (decoder.steps.logits[0, -1] - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_prompt_is_read_with_what_is_behind_it_unseen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys and values of prompts of any length; graphs, which take a GPU, are the work itself here."""
    made: list[int] = []

    def captured(work: Callable[[], None], device: torch.device, pool: object) -> SimpleNamespace:
        made.append(1)
        return SimpleNamespace(replay=work)

    monkeypatch.setattr(fused, "captured", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(Fused, "advance", lambda *_, **__: None)
    kind, config, more = MODELS[name]
    model = kind(config(**SIZES, **more | ({"sliding_window": 100} if name == "mistral" else {}))).eval()
    steps = Fused(model, 100)
    for count in (2, 17, 70, 33, 99):
        ids = torch.randint(67, (1, count), generator=torch.Generator().manual_seed(count))
        steps.prefill(ids)
        with torch.no_grad():
            theirs = DynamicCache()
            model(input_ids=ids[:, :-1], **cached(model, theirs))
        for block, layer in zip(steps.blocks, theirs.layers, strict=True):
            torch.testing.assert_close(block.keys[:, : count - 1], layer.keys[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(block.values[:, : count - 1], layer.values[0], rtol=1e-4, atol=1e-4)
    assert len(made) == 3  # of 32, 96 and 99 tokens


@pytest.mark.gpu
@pytest.mark.parametrize("bits, group", [(16, None), (8, None), (8, 32), (4, 32), (4, None)])
@pytest.mark.parametrize("name", list(MODELS))
def test_fused_kernels_give_the_logits_of_transformers(
    rounded: Callable[..., Packed], name: str, bits: int, group: int | None
) -> None:
    pytest.importorskip("triton")
    model = model_of(name, "cuda")
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
            theirs = model(input_ids=decoder.steps.tokens[None, :at]).logits[0, -1]
        assert (decoder.steps.logits - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.gpu
def test_layers_packed_differently_stand_beside_each_other(rounded: Callable[..., Packed]) -> None:
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
        theirs = model(input_ids=decoder.steps.tokens[None, :69]).logits[0, -1]
    assert decoder.steps.logits is not None
    assert (decoder.steps.logits - theirs).norm() <= 5e-2 * theirs.norm()  # beside a dense layer no input is rounded


@pytest.mark.gpu
def test_prompts_of_any_length_are_read_as_they_are() -> None:
    pytest.importorskip("triton")
    model = model_of("llama", "cuda")
    _reads_prompts(model)


@pytest.mark.gpu
def test_a_prompt_as_long_as_the_window_is_read() -> None:
    pytest.importorskip("triton")
    kind, config, _ = MODELS["mistral"]
    _reads_prompts(kind(config(**SIZES, sliding_window=100)).eval().cuda())


def _reads_prompts(model: PreTrainedModel) -> None:
    decoder = Decoder(model, 100)
    for count in (2, 17, 70, 33, 99):  # graphs of 32, 96 and 99, what fits
        ids = torch.randint(67, (1, count), generator=torch.Generator().manual_seed(count)).cuda()
        decoder.prefill(ids)
        decoder.decode(1)
        with torch.no_grad():
            theirs = model(input_ids=ids).logits[0, -1]
        assert (decoder.steps.logits - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.gpu
def test_float8_weights_decode_without_rounding_inputs() -> None:
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
        theirs = model(input_ids=decoder.steps.tokens[None, :69]).logits[0, -1]
    assert (decoder.steps.logits - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_bfloat16_model_decodes_as_its_own_rounding_allows(rounded: Callable[..., Packed], bits: int) -> None:
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
        theirs = model(input_ids=decoder.steps.tokens[None, :69]).logits[0, -1].float()
    assert decoder.steps.logits is not None
    tolerance = 5e-2 if bits == 16 else 0.15
    assert (decoder.steps.logits - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generating_on_a_gpu(temperature: float) -> None:
    for model in (
        model_of("llama", "cuda"),
        GPT2LMHeadModel(GPT2Config(vocab_size=67, n_embd=64, n_layer=2, n_head=2)).cuda().eval(),  # type: ignore[call-arg]
    ):
        model.generation_config.eos_token_id = None
        ids = torch.randint(67, (1, 9), device="cuda")
        decoder = Decoder(model, 64, temperature=temperature)
        ours = decoder.generate(ids, 40)
        assert ours.shape == (1, 49) and (ours[0, :9] == ids[0]).all()
        if temperature == 0:
            theirs = model.generate(ids, max_new_tokens=40, do_sample=False)
            assert (ours == theirs).float().mean() > 0.9  # a near tie may fall the other way
        with pytest.raises(ValueError, match="length 64"):
            decoder.generate(ids, 60)
