"""ONNX Runtime computes what PyTorch does, from the integers of the artifact."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slimexp import artifact
from slimexp.format import onnx
from slimexp.format.base import Artifact, Plain, Running
from slimexp.format.onnx_rounded import EXACT
from slimexp.format.onnx_runtime import keep_outputs
from slimexp.format.verification import compare, verify, verify_as_run
from slimexp.kernel.base import Packed, rounding

pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

Make = Callable[..., Any]
ROWS, COLUMNS = 6, 48


def saved(family: Any, folder: Path) -> Artifact:
    artifact.save(family, folder, dtype=torch.float32, stages=[{"name": "made"}])
    return Artifact(folder)


@pytest.fixture
def quantized(tiny: Make, technique: Make, corpus: Make, tmp_path: Path) -> Make:
    """Task and values of the technique -> an artifact."""

    def make(task: str, **values: Any) -> Artifact:
        stage = technique("quantize", **{"activation_bits": None} | values)
        stage.prepare(tiny(task), corpus(task), None)
        stage.finish()
        return saved(stage.family, tmp_path / "artifact")

    return make


def exported(model: Artifact, folder: Path) -> Path:
    """Write and compare."""
    kind = onnx.Onnx(cache=True)
    kind.require()
    assert kind.refusal(model) is None
    folder.mkdir()
    kind.write(model, folder)
    verify(model, kind, kind.load(model, folder))
    return folder


# --- whole models ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_integers_of_a_decoder_are_multiplied_as_they_are_and_it_keeps_a_cache(quantized: Make, tmp_path: Path) -> None:
    model = quantized("causal_lm", bits=4, group_size=16)
    folder = exported(model, tmp_path / "onnx")
    program = ir.load(folder / onnx.GRAPH)
    assert Counter(node.op_type for node in program.graph.all_nodes())["MatMulNBits"] == len(model.bits)
    running = onnx.OnnxRuntime(folder / onnx.GRAPH, {})
    calls: list[int] = []
    step = running._step
    running._step = lambda ids, *rest: calls.append(len(ids)) or step(ids, *rest)  # type: ignore[method-assign]
    assert running.decodes and running.greedy([3, 4, 5], [], 6) == Running.greedy(running, [3, 4, 5], [], 6)
    assert calls[:6] == [3, 1, 1, 1, 1, 1] and calls[6:] == [3, 4, 5, 6, 7, 8]
    rows = {one.name: one.shape for one in running.session.get_inputs()}
    layers = range(len(running.nothing) // 2)
    assert set(running.nothing) == {f"past_key_values.{layer}.{of}" for layer in layers for of in ("key", "value")}
    assert rows["input_ids"][1] != rows["attention_mask"][1]  # P + S
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert (folder / "tokenizer_config.json").exists() and not list(folder.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
@pytest.mark.parametrize("values", [{"bits": 8}, {"bits": 4, "symmetric": False}, {"bits": 8, "embeddings": True}])
def test_every_task_and_grid_agrees(quantized: Make, task: str, values: dict[str, Any], tmp_path: Path) -> None:
    exported(quantized(task, **values), tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_floats_of_every_task_agree_in_batches(tiny: Make, task: str, tmp_path: Path) -> None:
    family = tiny(task)
    folder = exported(saved(family, tmp_path / "artifact"), tmp_path / "onnx")
    ids = torch.arange(3, 18).reshape(3, 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids).index_fill(1, torch.tensor([4]), 0)}
    if task == "seq2seq":
        inputs["decoder_input_ids"] = ids[:, :2]
    with torch.inference_mode():
        wanted = family.model(**inputs).logits.numpy()
    running = onnx.OnnxRuntime(folder / onnx.GRAPH, {})
    arrays = {name: of.numpy() for name, of in inputs.items()}
    if task != "causal_lm":
        np.testing.assert_allclose(running.session.run(["logits"], arrays)[0], wanted, atol=1e-5)
        return
    past = {name: value.numpy().repeat(3, 0) for name, value in running.nothing.items()}
    for begin, end in (0, 3), (3, 5):  # the second reads on from the keys and values of the first
        part = {"input_ids": arrays["input_ids"][:, begin:end], "attention_mask": arrays["attention_mask"][:, :end]}
        names = [name.replace("past_key_values", "present") for name in past]
        logits, *present = running.session.run(["logits", *names], {**part, **past})
        np.testing.assert_allclose(logits, wanted[:, begin:end], atol=1e-5)
        past = dict(zip(past, present, strict=True))


@pytest.mark.slow
def test_a_graph_without_a_cache_reads_all_anew(tiny: Make, tmp_path: Path) -> None:
    model = saved(tiny("causal_lm"), tmp_path / "artifact")
    (folder := tmp_path / "onnx").mkdir()
    facts = (kind := onnx.Onnx(cache=False)).write(model, folder)
    running = kind.load(model, folder)
    verify(model, kind, running)
    assert isinstance(running, onnx.OnnxRuntime)
    assert not running.decodes and facts["layers_with_cache"] == 0
    assert {one.name for one in running.session.get_inputs()} == {"input_ids", "attention_mask"}


def test_what_is_kept_of_earlier_tokens_must_be_keys_and_values() -> None:
    program = program_of(torch.eye(2), "MatMul")
    program.graph.inputs[0].name = "input.cache.layers.0.conv_states"
    with pytest.raises(ValueError, match=r"more than keys and values \(input.cache.layers.0.conv_states\): take"):
        keep_outputs(program)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"activation_bits": 8, "group_size": 16}, "activation_bits=null"),
        ({"activation_bits": 8, "bits": 4, "group_size": None}, "weights have 8 bits"),
        ({"bits": 3, "group_size": 16}, "weights of 3 bits"),
    ],
)
def test_what_it_cannot_hold_is_refused(quantized: Make, values: dict[str, Any], why: str) -> None:
    refusal = onnx.Onnx(cache=True).refusal(quantized("causal_lm", **values))
    assert why in refusal


@pytest.mark.parametrize("task", ["classification", pytest.param("seq2seq", marks=pytest.mark.slow)])
def test_rounded_inputs_are_multiplied_as_integers(quantized: Make, task: str, tmp_path: Path) -> None:
    model = quantized(task, activation_bits=8)
    folder = exported(model, tmp_path / "onnx")
    operators = Counter(node.op_type for node in ir.load(folder / onnx.GRAPH).graph.all_nodes())
    assert operators["MatMulIntegerToFloat"] == len(model.bits)
    assert operators["QuantizeLinear"] < len(model.bits)  # what several layers read is rounded once
    exact = compare(model, onnx.Onnx(cache=True).load(model, folder))
    assert exact.relative < compare(model, Plain(model.unrounded)).relative
    as_run = onnx.Onnx(cache=True).as_run(model, folder)
    assert as_run is not None and verify_as_run(model, onnx.Onnx(cache=True), as_run)


# --- single layers ---------------------------------------------------------------------------------


def layer(bits: int, groups: int, zero: bool) -> Packed:
    made = torch.Generator().manual_seed(bits + groups)
    half = 2 ** (bits - 1)
    numbers = torch.randint(-half, half, (ROWS, COLUMNS), generator=made).to(torch.int8)
    zeros = torch.randint(-half, half, (ROWS, groups), generator=made).to(torch.int8) if zero else None
    return Packed(numbers, torch.rand(ROWS, groups, generator=made) + 0.5, zeros, bits, None, None)


def weight_of(packed: Packed) -> Tensor:
    repeats = COLUMNS // packed.scale.shape[1]
    zero = 0 if packed.zero is None else packed.zero.float().repeat_interleave(repeats, 1)
    return (packed.numbers.float() - zero) * packed.scale.repeat_interleave(repeats, 1)


def program_of(weight: Tensor, operator: str) -> Any:
    """A graph of one product ``x W^T``."""
    x = ir.Value(name="x", shape=ir.Shape(["rows", COLUMNS]), type=ir.TensorType(ir.DataType.FLOAT))
    transposed = operator == "MatMul"
    array = np.ascontiguousarray(weight.T if transposed else weight)
    w = ir.Value(name="w", const_value=ir.tensor(array, name="w"), shape=ir.Shape(array.shape))
    nodes = []
    if operator == "Transpose":
        nodes.append(ir.node("Transpose", [w], {"perm": [1, 0]}))
        nodes.append(ir.node("MatMul", [x, nodes[0].outputs[0]]))
    else:
        nodes.append(ir.node(operator, [x, w], {} if transposed else {"transB": 1}))
    output = nodes[-1].outputs[0]
    output.name, output.type, output.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", ROWS])
    graph = ir.Graph([x], [output], nodes=nodes, initializers=[w], opset_imports={"": onnx.OPSET}, name="layer")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Transpose"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (4, 1), (8, 3), (4, 3), (4, 6), (8, 2)])
def test_a_layer_of_integers_gives_the_product_of_its_floats(
    bits: int, groups: int, zero: bool, operator: str, tmp_path: Path
) -> None:
    packed = layer(bits, groups, zero)
    program = program_of(weight_of(packed), operator)
    onnx._hold_integers(program, {"layer": packed})
    kinds = {node.op_type for node in program.graph.all_nodes()}
    fits = groups == 1 or COLUMNS // groups % 16 == 0
    assert ("MatMulNBits" if fits else "DequantizeLinear") in kinds
    ir.save(program, tmp_path / "layer.onnx")
    x = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(0))
    (y,) = ort.InferenceSession(tmp_path / "layer.onnx").run(["y"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), x @ weight_of(packed).T, atol=1e-4 * 2**bits, rtol=1e-5)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Transpose"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("activation", ["token", 0.03])
def test_a_layer_rounds_what_it_reads_as_the_artifact_does(
    activation: Any, zero: bool, operator: str, tmp_path: Path
) -> None:
    packed = layer(8, 1, zero)._replace(activation=activation)
    program = program_of(weight_of(packed), operator)
    onnx._hold_integers(program, {"layer": packed})
    ir.save(program, tmp_path / "layer.onnx")
    x = 2 * torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(0))
    x[2] = 0
    options = ort.SessionOptions()
    for entry in EXACT.items():
        options.add_session_config_entry(*entry)
    (y,) = ort.InferenceSession(tmp_path / "layer.onnx", options).run(["y"], {"x": x.numpy()})
    numbers, step = rounding(x, activation, torch.int8)
    wanted = (numbers * step) @ weight_of(packed).T
    torch.testing.assert_close(torch.from_numpy(y), wanted, atol=1e-3, rtol=1e-5)
    assert not torch.allclose(wanted, x @ weight_of(packed).T, atol=0.1)


def test_integers_as_large_as_they_can_be_are_added_without_loss(tmp_path: Path) -> None:
    packed = layer(8, 1, False)._replace(numbers=torch.full((ROWS, COLUMNS), 127, dtype=torch.int8), activation="token")
    program = program_of(weight_of(packed), "MatMul")
    onnx._hold_integers(program, {"layer": packed})
    folder = tmp_path / "layer.onnx"
    ir.save(program, folder)
    x = np.ones((1, COLUMNS), np.float32)
    found = onnx.OnnxRuntime(folder, EXACT).session.run(["y"], {"x": x})[0]
    wanted = COLUMNS * 127 * packed.scale.numpy().T * 127 / 127.5  # the largest number clips by half a step
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_weight_that_the_graph_does_not_have_is_no_export() -> None:
    packed = layer(8, 1, False)
    program = program_of(weight_of(packed) + 1, "MatMul")
    with pytest.raises(ValueError, match="no weight of the quantized layer 'layer'"):
        onnx._hold_integers(program, {"layer": packed})
