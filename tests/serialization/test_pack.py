"""Fake == packed == reloaded by plain transformers."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.fp8_static import Fp8Static
from slimexp.quantizer.fp8_token import Fp8Token
from slimexp.quantizer.lsq import Lsq
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.static import Static
from slimexp.quantizer.ternary import Ternary
from slimexp.quantizer.token import Token
from slimexp.serialization.pack import decompress, is_fixed, pack, packed_tensors, plain_names, plain_tensor
from slimexp.serialization.unpack import unpacked
from slimexp.weight.attachment import INPUT, attach
from slimexp.weight.mask import Mask

T5, LLAMA, BERT = "t5", "llama", "bert"
MODELS = [T5, LLAMA, BERT]
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
# older transformers build a T5 compressed and then look for the weights that are packed
LOADS_PACKED_T5 = hasattr(CompressedTensorsHfQuantizer, "get_load_operations")


def tiny(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == T5:
        config: Any = T5Config(  # type: ignore[call-arg]
            vocab_size=96, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", decoder_start_token_id=0,
        )  # fmt: skip
        return T5ForConditionalGeneration(config).eval()
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    if name == LLAMA:
        config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
        return LlamaForCausalLM(config).eval()
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=4, num_labels=3)).eval()  # type: ignore[call-arg]


def in_blocks(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers inside the numbered blocks."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))
    }


def quantized(
    name: str,
    *,
    bits: int,
    group_size: int | str | None,
    activations: bool,
    symmetric: bool = True,
    kind: Callable[..., Quantizer] = MinMax,
    static: bool = False,
) -> PreTrainedModel:
    """A model with half its weights masked and quantizers over the masks."""
    model = tiny(name)
    for layer in in_blocks(model).values():
        mask = Mask(shape=layer.weight.shape)
        mask.mask.copy_(torch.rand(layer.weight.shape) > 0.5)
        attach(layer, "weight", mask)
        attach(layer, "weight", on_weight := kind(bits=bits, group_size=group_size, symmetric=symmetric))
        on_weight.start(layer.parametrizations.weight.original)
        if activations:
            attach(layer, INPUT, activation(static))
    return model


def learned(**settings: Any) -> Quantizer:
    return Lsq(**settings, candidates=20, smallest=0.4, rate=30.0)


def activation(static: bool) -> Quantizer:
    if not static:
        return Token(bits=8, group_size=None)
    quantizer = Static(bits=8, range=MinMax)
    quantizer.start(torch.tensor([-1.5, 1.0]))
    return quantizer


def write(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A folder as an artifact has it."""
    state, quantization = pack(model)
    state = {name: (t if is_fixed(name, t) else t.to(dtype)).contiguous() for name, t in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"quantization_config": quantization, "dtype": str(dtype).removeprefix("torch.")}
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config))
    return load_file(folder / "model.safetensors")


def reload(model: PreTrainedModel, folder: Path, **options: object) -> PreTrainedModel:
    again, report = type(model).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return again.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    decoder = {"decoder_input_ids": IDS[:, :5]} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **decoder).logits.float()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32), (3, None), (2, 16)])
def test_reloaded_weights_only(name: str, bits: int, group_size: int | None, tmp_path: Path) -> None:
    if name == T5 and bits < 8 and not LOADS_PACKED_T5:
        pytest.skip(f"transformers {transformers.__version__} cannot load a T5 with packed weights")
    model = quantized(name, bits=bits, group_size=group_size, activations=False)
    write(model, tmp_path)
    assert torch.allclose(logits(reload(model, tmp_path)), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "bits", "group_size"),
    [(T5, 8, None), (T5, 8, 32), (LLAMA, 8, None), (LLAMA, 4, 32), (BERT, 8, 32), (BERT, 4, None)],
)
def test_reloaded_with_activations(name: str, bits: int, group_size: int | None, tmp_path: Path) -> None:
    model = quantized(name, bits=bits, group_size=group_size, activations=True)
    write(model, tmp_path)
    assert torch.allclose(logits(reload(model, tmp_path)), logits(model), atol=1e-5, rtol=0)


FORMATS = [
    {"bits": 8, "group_size": None, "symmetric": False},
    {"bits": 4, "group_size": 32, "symmetric": False},
    {"bits": 3, "group_size": None, "symmetric": False},
    {"bits": 2, "group_size": 16, "symmetric": False},
    {"bits": 8, "group_size": "tensor"},
    {"bits": 4, "group_size": "tensor"},
    {"bits": 3, "group_size": "tensor", "symmetric": False},
    {"bits": 8, "group_size": "tensor", "symmetric": False, "activations": True, "static": True},
    {"bits": 2, "group_size": "tensor", "kind": learned},
    {"bits": 2, "group_size": 16, "kind": Ternary},
    {"bits": 4, "group_size": 32, "kind": learned},
    {"bits": 8, "group_size": None, "kind": learned, "activations": True},
    {"bits": 8, "group_size": None, "activations": True, "static": True},
    {"bits": 4, "group_size": 32, "activations": True, "static": True},
    {"bits": 8, "group_size": None, "symmetric": False, "activations": True, "static": True},
]


def on_one_of(models: list[str], cells: list[Any]) -> list[Any]:
    """Pairs with a model: every cell on one model, which change in turns, by default; on the others it is slow."""
    return [
        pytest.param(cell, name, marks=[] if number % len(models) == turn else pytest.mark.slow)
        for number, cell in enumerate(cells)
        for turn, name in enumerate(models)
    ]


@pytest.mark.parametrize(
    ("settings", "name"),
    on_one_of([LLAMA, BERT, T5], FORMATS),
    ids=lambda value: (
        value
        if isinstance(value, str)
        else "-".join(str(getattr(setting, "__name__", setting)) for setting in value.values())
    ),
)
def test_every_format_is_reloaded_with_the_logits_and_the_integers(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    if name == T5 and settings["bits"] < 8 and ("activations" in settings or not LOADS_PACKED_T5):
        pytest.skip("transformers cannot load it")
    model = quantized(name, **{"activations": False} | settings)
    write(model, tmp_path)
    assert torch.allclose(logits(reload(model, tmp_path)), logits(model), atol=1e-5, rtol=0)
    stored = unpacked(tmp_path)
    for layer_name, layer in in_blocks(model).items():
        one = stored[layer_name]
        assert torch.equal(one.weight(), layer.weight)
        assert one.numbers.dtype == torch.int8
        assert (one.zero is None) == settings.get("symmetric", True)
        assert one.bits == settings["bits"]
        assert (one.bias is None) == (layer.bias is None)
        static = settings.get("static", False)
        expected = layer.input_attachment.scale.item() if static else "token" if "activations" in settings else None
        assert one.activation == expected


@pytest.mark.parametrize(
    ("rounded", "name"), on_one_of(MODELS, list(product([None, "tensor", 32], [None, Fp8Token, Fp8Static])))
)
def test_fp8_is_stored_as_it_is_and_reloaded_with_the_logits(
    name: str, rounded: tuple[int | str | None, type[Quantizer] | None], tmp_path: Path
) -> None:
    group_size, on_inputs = rounded
    model = quantized(name, bits=8, group_size=group_size, activations=False, kind=Fp8)
    for layer in in_blocks(model).values():
        if on_inputs is not None:
            attach(layer, INPUT, rounds := on_inputs(bits=8, group_size=None))
            rounds.start(torch.tensor([[[-1.5, 1.0]]]))
    state = write(model, tmp_path, torch.bfloat16)
    for layer_name, layer in in_blocks(model).items():
        assert state[f"{layer_name}.weight"].dtype == torch.float8_e4m3fn
        assert state[f"{layer_name}.weight"].nbytes == layer.weight.numel()
    written = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert written["format"] == "float-quantized"
    write(model, tmp_path)
    again = reload(model, tmp_path)
    assert torch.allclose(logits(again), logits(model), atol=1e-5, rtol=0)
    decompress(again)
    for layer, other in zip(in_blocks(model).values(), in_blocks(again).values(), strict=True):
        assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("name", [LLAMA, BERT])
def test_bits_may_differ_from_layer_to_layer(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    widths = {}
    for number, (layer_name, layer) in enumerate(in_blocks(model).items()):
        widths[layer_name] = [8, 4, 3, 2][number % 4]
        attach(layer, "weight", MinMax(bits=widths[layer_name], group_size=16 if number % 2 else None))
        if number % 4 == 0:
            attach(layer, INPUT, Token(bits=8, group_size=None))
    write(model, tmp_path)
    assert torch.allclose(logits(reload(model, tmp_path)), logits(model), atol=1e-5, rtol=0)
    assert {layer_name: layer.bits for layer_name, layer in unpacked(tmp_path).items()} == widths


def test_an_encoder_decoder_has_one_scheme() -> None:
    model = tiny(T5)
    for number, layer in enumerate(in_blocks(model).values()):
        attach(layer, "weight", MinMax(bits=4 if number else 8, group_size=None))
    with pytest.raises(ValueError, match="loads an encoder-decoder under one scheme alone"):
        pack(model)


@pytest.mark.parametrize("activations", [True, False])
def test_a_reloaded_encoder_decoder_generates(activations: bool, tmp_path: Path) -> None:
    model = quantized(T5, bits=8, group_size=None, activations=activations)
    write(model, tmp_path)
    again = reload(model, tmp_path)
    decompress(again)
    options = {"input_ids": IDS, "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(again.generate(**options), model.generate(**options))


@pytest.mark.parametrize("name", [LLAMA, BERT])
def test_saved_in_bfloat16_the_grid_is_the_trained_one(name: str, tmp_path: Path) -> None:
    model = quantized(name, bits=8, group_size=None, activations=False)
    write(model, tmp_path, torch.bfloat16)
    again = reload(model, tmp_path, dtype=torch.float32)
    decompress(again)
    for layer, other in zip(in_blocks(model).values(), in_blocks(again).values(), strict=True):
        assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize(
    ("bits", "activations", "key", "dtype"), [(8, True, "weight", torch.int8), (4, False, "weight_packed", torch.int32)]
)
def test_integers_on_disk_take_the_bytes_they_should(
    bits: int, activations: bool, key: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = quantized(LLAMA, bits=bits, group_size=32, activations=activations)
    state = write(model, tmp_path, torch.bfloat16)
    for name, layer in in_blocks(model).items():
        integers, scale = state[f"{name}.{key}"], state[f"{name}.weight_scale"]
        assert integers.dtype == dtype
        assert integers.nbytes == layer.weight.numel() * bits // 8
        assert scale.shape == (layer.weight.shape[0], layer.weight.shape[1] // 32)
        assert scale.dtype == (torch.bfloat16 if bits <= 4 else torch.float32)
    floats = sum(t.nbytes for name, t in state.items() if not any(name.startswith(layer) for layer in in_blocks(model)))
    assert floats < 2 * (96 * 64 + 6 * 64)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (T5, ["shared", "lm_head", "encoder.embed_tokens"]),
        (LLAMA, ["model.embed_tokens", "lm_head"]),
        (BERT, ["classifier", "bert.pooler.dense", "bert.embeddings.word_embeddings"]),
    ],
)
def test_heads_and_embeddings_stay_float_and_are_listed(name: str, heads: list[str]) -> None:
    model = quantized(name, bits=8, group_size=None, activations=True)
    state, config = pack(model)
    assert set(heads) <= set(config["ignore"])
    assert all(state[f"{head}.weight"].is_floating_point() for head in heads if f"{head}.weight" in state)
    assert not set(config["ignore"]) & set(in_blocks(model))


@pytest.mark.parametrize("name", [T5, LLAMA])
def test_tied_weights_are_stored_once_and_tied_again(name: str, tmp_path: Path) -> None:
    model = quantized(name, bits=8, group_size=None, activations=True)
    state = write(model, tmp_path)
    assert sum(name.endswith(("embed_tokens.weight", "shared.weight", "lm_head.weight")) for name in state) == 1
    again = reload(model, tmp_path)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


def test_masks_survive_packing(tmp_path: Path) -> None:
    model = quantized(LLAMA, bits=4, group_size=32, activations=False)
    masks = {name: layer.parametrizations.weight[0].mask for name, layer in in_blocks(model).items()}
    write(model, tmp_path)
    again = in_blocks(reload(model, tmp_path))
    assert all((again[name].weight[~mask] == 0).all() for name, mask in masks.items())


def test_a_mask_over_the_quantizer_is_packed_too(tmp_path: Path) -> None:
    model = tiny(LLAMA)
    for layer in in_blocks(model).values():
        attach(layer, "weight", MinMax(bits=8, group_size=None))
        mask = Mask(shape=layer.weight.shape)
        mask.mask[:, ::2] = False
        attach(layer, "weight", mask)
    write(model, tmp_path)
    assert torch.equal(logits(reload(model, tmp_path)), logits(model))


def test_off_the_grid_is_refused() -> None:
    class Shift(Mask):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + 0.001

    model = quantized(BERT, bits=4, group_size=None, activations=False)
    layer = next(iter(in_blocks(model).values()))
    attach(layer, "weight", Shift(shape=layer.weight.shape))
    with pytest.raises(ValueError, match="is off the grid of its 4-bit quantizer"):
        pack(model)


def test_nothing_to_pack() -> None:
    with pytest.raises(ValueError, match="pack needs a quantizer on a weight, found none"):
        pack(tiny(BERT))


@pytest.mark.parametrize("name", MODELS)
def test_plain_tensors_load_into_a_plain_model(name: str) -> None:
    model = quantized(name, bits=8, group_size=None, activations=False)
    plain = tiny(name)
    missing, unexpected = plain.load_state_dict(
        {name: plain_tensor(model, name) for name in plain_names(model)}, strict=False
    )
    assert not unexpected
    assert all(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in missing)  # tied ones
    assert torch.equal(logits(plain), logits(model))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "bits", "group_size", "symmetric"),
    [(MinMax, 8, None, True), (MinMax, 4, 32, True), (MinMax, 4, 16, False), (learned, 4, 32, True)],
)
def test_a_gpu_packs_as_a_cpu_does(
    kind: Callable[..., Quantizer], bits: int, group_size: int | None, symmetric: bool
) -> None:
    model = quantized(LLAMA, bits=bits, group_size=group_size, activations=bits == 8, symmetric=symmetric, kind=kind)
    on_cpu, on_gpu = (
        {name: tensor for name, tensor, _ in packed_tensors(model, device)} for device in (None, torch.device("cuda"))
    )
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert on_cpu.keys() == on_gpu.keys()
    assert any(tensor.is_cuda for tensor in on_gpu.values())
    for name, tensor in on_cpu.items():
        assert torch.equal(on_gpu[name].cpu(), tensor), name
