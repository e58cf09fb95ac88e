"""An artifact's integers run as they are, and compute what was trained."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slimexp import artifact
from slimexp.decode.packed_linear import PackedLinear
from slimexp.kernel import autotune
from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.dense import DenseFloat32
from slimexp.measure.size import count
from slimexp.model import serving
from slimexp.model.base import Family
from slimexp.model.execution import kernel
from slimexp.model.loading import family_of
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.weight.attachment import INPUT, attach

Make = Callable[..., Any]
STATIC = "quantizer@pipeline.quantize.activation_quantizer=static"
FLOAT8 = ["quantizer@pipeline.quantize.quantizer=fp8"]
FLOAT8_TOKEN = "quantizer@pipeline.quantize.activation_quantizer=fp8_token"
TASKS = ["seq2seq", "causal_lm", "classification"]


@pytest.fixture(autouse=True)
def _the_first_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny layers are as fast on one kernel as on another: no clock decides here."""

    def able(packed: Packed, rows: int, dtype: torch.dtype) -> dict[str, list[float]]:
        return {one.__name__: [1.0] for one in autotune.BACKENDS if one.refusal(packed, packed.numbers.device) is None}

    monkeypatch.setattr(autotune, "time_backends", able)
    monkeypatch.setattr(autotune, "_choices", {})
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path))  # other tests may have timed the same shapes


def saved(family: Family, folder: Path, *, bits: int, group_size: int | str | None, activations: bool) -> Family:
    """``family`` quantized, in memory and in ``folder``."""
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=bits, group_size=group_size))
        if activations:
            attach(layer, INPUT, Token(bits=8, group_size=None))
    family.model.eval()
    artifact.save(family, folder, dtype=torch.float32, stages=[])
    return family


@torch.no_grad()
def logits(family: Family) -> Tensor:
    batch = family.encode([("some words to read", "and to write", 0), ("more", "less", 1)])
    return family.forward({name: tensor.to(family.device) for name, tensor in batch.items()})[0]


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32)])
def test_on_a_gpu_llama_like_models_run_on_words(
    bits: int, group_size: int | None, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    fake = saved(
        tiny("causal_lm", intermediate_size=64), tmp_path / "a", bits=bits, group_size=group_size, activations=False
    )
    model = serving._packed(
        tmp_path / "a", "causal_lm", fake.max_length, torch.device("cuda")
    )  # laid out for it, and not moved there
    real = family_of(model, tmp_path / "a", "causal_lm", fake.max_length)
    assert all(isinstance(real.model.get_submodule(name), PackedLinear) for name in fake.compressible())
    assert (logits(real) - logits(fake)).norm() < 2e-2 * logits(fake).norm()  # inputs are rounded to int8


def test_on_a_cpu_float8_is_autotuned_too(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tiny("causal_lm")
    for layer in fake.compressible().values():
        attach(layer, "weight", Fp8(bits=8, group_size=None))
    artifact.save(fake, tmp_path / "a", dtype=torch.float32, stages=[])
    monkeypatch.setattr(autotune, "time_backends", lambda *_: {"ScaledMM": [2.0], "DenseFloat32": [1.0]})
    real = artifact.served(tmp_path / "a")
    assert all(isinstance(real.model.get_submodule(name), DenseFloat32) for name in fake.compressible())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("packs", [False, True])
def test_a_model_runs_in_the_type_that_it_is_stored_in(packs: bool, task: str, tiny: Make, tmp_path: Path) -> None:
    fake = tiny(task)
    if packs:
        for layer in fake.compressible().values():
            attach(layer, "weight", MinMax(bits=8, group_size=None))
    artifact.save(fake, tmp_path / "a", dtype=torch.bfloat16, stages=[])
    assert serving.stored_type(tmp_path / "a") == torch.bfloat16
    real = serving.served(tmp_path / "a", task, fake.max_length, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in real.model.parameters()} == {torch.bfloat16}
    angles = [buffer.dtype for name, buffer in real.model.named_buffers() if name.endswith("inv_freq")]
    assert set(angles) <= {torch.float32}, "positions are computed in float32, as plain transformers does"
    expected = logits(artifact.served(tmp_path / "a"))
    assert logits(real).dtype == torch.bfloat16
    assert (logits(real).float() - expected).norm() < 3e-2 * expected.norm()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({}, torch.float32),
        ({"dtype": "int8"}, torch.float32),
        ({"dtype": None, "torch_dtype": None}, torch.float32),
        ({"dtype": "manual_seed"}, torch.float32),
    ],
)
def test_the_stored_type_is_what_the_config_says(written: dict[str, Any], read: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert serving.stored_type(tmp_path) == read


def test_a_nan_among_packed_float8_is_refused(tiny: Make, tmp_path: Path) -> None:
    fake = tiny("causal_lm")
    for layer in fake.compressible().values():
        attach(layer, "weight", Fp8(bits=8, group_size=None))
    artifact.save(fake, tmp_path / "a", dtype=torch.float32, stages=[])
    path = tmp_path / "a" / "model.safetensors"
    state = load_file(path)
    name = next(name for name, tensor in state.items() if tensor.dtype == torch.float8_e4m3fn)
    state[name].view(torch.uint8)[0, 0] = 0x7F
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"'{re.escape(name)}' in model.safetensors holds NaN"):
        artifact.served(tmp_path / "a")


@pytest.mark.parametrize("size", [0, 5000])
def test_an_artifact_that_was_cut_short_is_refused(size: int, tiny: Make, tmp_path: Path) -> None:
    saved(tiny("causal_lm"), tmp_path / "a", bits=8, group_size=None, activations=False)
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"its safetensors file was cut short or is none .*: get the file anew"):
        artifact.served(tmp_path / "a")


def test_what_the_decode_loop_does_not_read_is_autotuned() -> None:
    gpu = torch.device("cuda")
    layer = Packed(torch.ones(32, 32, dtype=torch.int8), torch.ones(32, 1), None, 8, None, None)
    assert serving._read_by_decoding({"a": layer, "b": layer}, gpu) == {"a": PackedLinear, "b": PackedLinear}
    assert serving._read_by_decoding({"a": layer, "b": layer._replace(activation=0.1)}, gpu) is None


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("overrides", [FLOAT8, [*FLOAT8, FLOAT8_TOKEN], [STATIC], []], ids=str)
def test_on_a_gpu_kernels_and_plain_transformers_agree(
    task: str, overrides: list[str], tiny: Make, corpus: Make, technique: Make, tmp_path: Path
) -> None:
    stage = technique("quantize", *overrides, bits=8, activation_bits=None if overrides == FLOAT8 else 8)
    stage.prepare(tiny(task), corpus(task), None)
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    plain, real = artifact.deployed(tmp_path / "a"), artifact.served(tmp_path / "a", "cuda")
    assert any(isinstance(module, Kernel) for module in real.model.modules())
    tolerance = 5e-2 if FLOAT8_TOKEN in overrides else 2e-2  # a float8 moves by an eighth of itself
    assert (logits(real).cpu() - logits(plain)).norm() < tolerance * logits(plain).norm()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("bits", "group_size", "activations"), [(8, None, True), (8, "tensor", False), (4, 8, False)])
def test_fake_and_real_logits_agree(
    task: str, bits: int, group_size: int | str | None, activations: bool, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    fake = saved(tiny(task), tmp_path / "a", bits=bits, group_size=group_size, activations=activations)
    real = artifact.served(tmp_path / "a")
    assert all(isinstance(real.model.get_submodule(name), Kernel) for name in fake.compressible())
    distance = (logits(real) - logits(fake)).norm() / logits(fake).norm()
    assert distance < 1e-2
    assert f"in {len(fake.compressible())} of" in kernel(real.model, tmp_path / "a")


@pytest.mark.parametrize(
    ("task", "overrides", "settings"),
    [
        *[(task, [], {"bits": 8, "activation_bits": None, "symmetric": False}) for task in TASKS],
        *[(task, [], {"bits": 4, "activation_bits": None, "symmetric": False, "group_size": 8}) for task in TASKS],
        *[(task, [STATIC], {"bits": 8, "activation_bits": 8}) for task in TASKS],
        ("causal_lm", [STATIC], {"bits": 4, "activation_bits": 8, "group_size": 8}),
        *[(task, FLOAT8, {"bits": 8, "activation_bits": None}) for task in TASKS],
        *[(task, [*FLOAT8, FLOAT8_TOKEN], {"bits": 8, "activation_bits": 8}) for task in TASKS],
        ("causal_lm", [], {"bits": 8, "activation_bits": None, "embeddings": True}),
        ("causal_lm", [], {"bits": 4, "activation_bits": None, "embeddings": True, "group_size": 8}),
    ],
    ids=str,
)
def test_kernels_and_plain_transformers_agree(
    task: str, overrides: list[str], settings: dict[str, Any], tiny: Make, corpus: Make, technique: Make, tmp_path: Path
) -> None:
    """Within 1 % of the logits: kernels round inputs that plain transformers leaves as floats to int8.

    Within 2 % where inputs are float8: one that falls to the next number moves by an eighth of itself.
    """
    stage = technique("quantize", *overrides, **settings)
    try:
        stage.validate(tiny(task).model.config, before=[])
    except ValueError as older:
        if "install transformers" not in str(older):
            raise
        pytest.skip(str(older))
    stage.prepare(tiny(task), corpus(task), None)
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    plain, real = artifact.deployed(tmp_path / "a"), artifact.served(str(tmp_path / "a"))
    assert any(isinstance(module, Kernel) for module in real.model.modules())
    torch.testing.assert_close(logits(plain), logits(stage.family), rtol=0, atol=1e-5)
    tolerance = 2e-2 if FLOAT8_TOKEN in overrides else 1e-2
    assert (logits(real) - logits(plain)).norm() < tolerance * logits(plain).norm()


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_generation_with_a_cache(task: str, tiny: Callable[..., Any], tmp_path: Path) -> None:
    fake = saved(tiny(task), tmp_path / "a", bits=8, group_size=None, activations=True)
    real = artifact.served(tmp_path / "a")
    ids = torch.randint(3, 30, (1, 5), generator=torch.Generator().manual_seed(0))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(real.model.generate(ids, **options), fake.model.generate(ids, **options))


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_counted_as_before(task: str, tiny: Callable[..., Any], tmp_path: Path) -> None:
    saved(tiny(task), tmp_path / "a", bits=8, group_size=None, activations=False)
    assert count(artifact.served(tmp_path / "a").model) == count(artifact.deployed(tmp_path / "a").model)


def test_a_dense_model_is_served_as_it_is(tiny: Callable[..., Any], tmp_path: Path) -> None:
    family = tiny("causal_lm")
    artifact.save(family, tmp_path / "a", dtype=torch.float32, stages=[])
    real = artifact.served(tmp_path / "a")
    assert not any(isinstance(module, Kernel) for module in real.model.modules())
    assert isinstance(next(iter(real.compressible().values())), nn.Linear)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"format": "marlin-24"}, "stored as marlin-24"),
        ({"targets": [["re:.*mlp.*"], ["re:.*attn.*"]]}, "told by patterns or classes"),
        ({"targets": [["model.layers.0.mlp.up_proj"], ["Linear"]]}, "told by patterns or classes"),
        ({"targets": [["model.layers.0.mlp.up_proj"], ["model.layers.0.mlp.down_proj"]]}, None),
    ],
    ids=str,
)
def test_what_others_saved_and_no_kernel_here_reads_is_refused(
    change: dict[str, Any], why: str | None, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    saved(tiny("causal_lm"), tmp_path / "a", bits=4, group_size=8, activations=False)
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    stored = config["quantization_config"]
    (group,) = stored["config_groups"].values()
    if "format" in change:
        stored["format"] = group["format"] = change["format"]
    if "targets" in change:
        stored["config_groups"] = {str(n): {**group, "targets": one} for n, one in enumerate(change["targets"])}
    path.write_text(json.dumps(config))
    found = serving.refusal(tmp_path / "a")
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight_scale", "model.norm.weight"])
def test_what_is_not_finite_is_refused_by_name(name: str, tiny: Callable[..., Any], tmp_path: Path) -> None:
    saved(tiny("causal_lm"), tmp_path / "a", bits=4, group_size=8, activations=False)
    file = tmp_path / "a" / "model.safetensors"
    state = load_file(file)
    state[name].view(-1)[0] = torch.nan
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"'{name}' in model.safetensors holds NaN or infinity"):
        artifact.served(tmp_path / "a")


LAYER = "model.layers.0.mlp.up_proj"
PACKED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no scale": (lambda state: state.pop(f"{LAYER}.weight_scale"), "lacks model.layers.0.mlp.up_proj.weight"),
    "no numbers": (lambda state: state.pop(f"{LAYER}.weight_packed"), "packed weights are damaged"),
    "no shape": (lambda state: state.pop(f"{LAYER}.weight_shape"), "packed weights are damaged"),
    "another shape": (
        lambda state: state.update({f"{LAYER}.weight_shape": torch.tensor([48, 16])}),
        rf"'{LAYER}.weight' must have shape \[48, 32\] by its config.json, got \[48, 16\]",
    ),
    "fewer scales": (
        lambda state: state.update({f"{LAYER}.weight_scale": state[f"{LAYER}.weight_scale"][:8].clone()}),
        rf"'{LAYER}' must have a scale for each row or group, got \[8, 4\]",
    ),
    "another norm": (
        lambda state: state.update({"model.norm.weight": torch.ones(31)}),
        r"'model.norm.weight' must have shape \[32\] by its config.json, got \[31\]",
    ),
    "a layer more": (
        lambda state: state.update({k.replace("0", "7"): v.clone() for k, v in state.items() if k.startswith(LAYER)}),
        r"'model.layers.7.mlp.up_proj.weight' must have shape \[\] by its config.json",
    ),
}


@pytest.mark.parametrize("what", PACKED)
def test_packed_numbers_that_do_not_fit_are_refused(what: str, tiny: Callable[..., Any], tmp_path: Path) -> None:
    saved(tiny("causal_lm"), tmp_path / "a", bits=4, group_size=8, activations=False)
    damage, why = PACKED[what]
    damage(state := load_file(tmp_path / "a" / "model.safetensors"))
    save_file(state, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=why) as raised:
        artifact.served(tmp_path / "a")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("groups", [None, 5, {}, {"a": 5}, {"a": {"targets": ["Linear"]}}], ids=str)
def test_settings_of_a_format_that_are_damaged_are_no_traceback(
    groups: Any, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    saved(tiny("causal_lm"), tmp_path / "a", bits=4, group_size=8, activations=False)
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"] = groups
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model '.*'") as raised:
        artifact.served(tmp_path / "a")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("task", TASKS)
def test_weights_take_no_memory_before_they_are_read(
    task: str, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tiny(task), tmp_path / "a", bits=8, group_size=None, activations=False)
    bare = serving.bare
    made: list[tuple[set[bool], bool]] = []

    def watched(*arguments: Any) -> tuple[Any, Any]:
        make, config = bare(*arguments)

        def build(config: Any) -> Any:
            model = make(config)
            weights, buffers = ({one.is_meta for one in tensors} for tensors in (model.parameters(), model.buffers()))
            made.append((weights, True in buffers))
            return model

        return build, config

    monkeypatch.setattr(serving, "bare", watched)
    real = artifact.served(tmp_path / "a")
    assert made == [({True}, False)], "and buffers are computed: they are in no file"
    assert not any(tensor.requires_grad for tensor in real.model.parameters())
    assert not nn.Linear(2, 2).weight.is_meta
