"""OpenVINO's runtime computes what PyTorch does, by the integers that were packed."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slimexp.export import export
from slimexp.format.base import Artifact, Plain
from slimexp.format.openvino import GRAPH, Openvino, Runtime, _integers, core
from slimexp.format.report import Report
from slimexp.kernel.base import Packed
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.serialization.unpack import unpacked

Make = Callable[..., Any]
INT8 = partial(MinMax, bits=8, group_size=None)
needs_engine = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def engine() -> None:
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    Openvino().require()


def exported(model: Artifact) -> tuple[Path, Report]:
    folder = model.folder.parent / "export"
    return folder, export(model, Openvino(), "openvino", folder, timed=False)


def constants(folder: Path) -> list[Any]:
    graph = core().read_model(folder / GRAPH)
    return [node for node in graph.get_ops() if node.get_type_name() == "Constant"]


@needs_engine
def test_conversions_are_reported_to_nobody() -> None:
    from openvino.tools.ovc import telemetry_stub, telemetry_utils

    assert telemetry_utils.tm is telemetry_stub


ENDED_IN_ORDER = """
import signal, sys
from pathlib import Path
from slimexp.format.openvino import Runtime
first = Runtime(Path(sys.argv[1]), {})
second = Runtime(Path(sys.argv[1]), {})
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
signal.raise_signal(signal.SIGUSR1)
"""


@pytest.mark.slow
@needs_engine
def test_a_signal_after_runtimes_that_have_ended_does_not_end_the_program(
    made: Make, start: Make, tmp_path: Path
) -> None:
    folder, _ = exported(made("classification"))
    (tmp_path / "program.py").write_text(ENDED_IN_ORDER)
    assert start(tmp_path / "program.py", str(folder / GRAPH)).end()[:2] == (0, "heard\n")


# --- whole models ----------------------------------------------------------------------------------


@pytest.mark.slow
@needs_engine
def test_integers_of_a_decoder_that_keeps_its_state(made: Make) -> None:
    model = made("causal_lm", partial(MinMax, bits=4, group_size=16), dtype=torch.bfloat16)
    folder, report = exported(model)
    assert report.agreement.relative < 1e-5 and report.facts["keeps_state"]
    kinds = Counter(node.get_element_type().get_type_name() for node in constants(folder))
    assert kinds["i4"] == len(model.bits) and kinds["bf16"] >= 1  # the embeddings, in the artifact's own type
    running = Openvino().load(model, folder)
    assert running.decodes
    ids = model.family.token_ids(["standard"])[0]
    anew = [*ids]
    for token in running.greedy(ids, [], 8):
        assert token == running.logits(anew, [])[-1].argmax()
        anew.append(token)
    assert (folder / "tokenizer_config.json").exists() and not list(folder.glob("*.safetensors"))


@needs_engine
@pytest.mark.slow
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
@pytest.mark.parametrize("values", [None, {"bits": 8}, {"bits": 4, "symmetric": False}, {"bits": 3}])
def test_every_task_and_grid_agrees(task: str, values: dict[str, Any] | None, made: Make) -> None:
    weight = None if values is None else partial(MinMax, group_size=None, **values)
    model = made(task, weight)
    folder, report = exported(model)
    assert report.agreement.relative < 1e-5
    integers = sorted(
        node.data.tobytes() for node in constants(folder) if node.get_element_type().get_type_name() == "i8"
    )
    if values == {"bits": 8}:
        assert integers == sorted(packed.numbers.numpy().tobytes() for packed in unpacked(model.folder).values())


@needs_engine
@pytest.mark.parametrize("group_size", [None, 16])
def test_layers_of_unlike_bits_agree(group_size: int | None, made: Make) -> None:
    bits = cycle([4, 3, 8])
    model = made("causal_lm", lambda: MinMax(bits=next(bits), group_size=group_size))
    _, report = exported(model)
    assert set(model.bits.values()) == {3, 4, 8} and report.agreement.relative < 1e-5
    assert {"i4", "i8"} <= set(report.facts["constants"])


@needs_engine
def test_rounded_inputs_are_left_to_the_runtime(made: Make) -> None:
    model = made("classification", INT8, partial(Token, bits=8, group_size=None))
    folder, report = exported(model)
    assert report.facts["constants"]["i8"] == len(model.bits) and report.as_run is not None
    plain = Plain(model.unrounded)
    found = Openvino().load(model, folder).logits([3, 4, 5], [])
    np.testing.assert_allclose(found, plain.logits([3, 4, 5], []), atol=1e-5)


@needs_engine
@pytest.mark.slow
def test_batches_of_any_length(made: Make) -> None:
    model = made("classification")
    folder, _ = exported(model)
    ids = torch.arange(3, 18).reshape(3, 5)
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([4]), 0)
    with torch.inference_mode():
        wanted = model.family.model(input_ids=ids, attention_mask=mask).logits.numpy()
    running = Openvino().load(model, folder)
    assert isinstance(running, Runtime)
    found = running.request.infer({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "inputs", "why"),
    [
        (partial(Fp8, bits=8, group_size=None, symmetric=True), None, "float8"),
    ],
)
def test_what_it_cannot_hold_is_refused(weight: Make, inputs: Make | None, why: str, made: Make) -> None:
    refusal = Openvino().refusal(made("causal_lm", weight, inputs))
    assert refusal is not None and why in refusal


# --- single layers ---------------------------------------------------------------------------------


def layer(bits: int, groups: int, zero: bool) -> Packed:
    chance = torch.Generator().manual_seed(bits + groups)
    half = 2 ** (bits - 1)
    numbers = torch.randint(-half, half, (40, 96), generator=chance).to(torch.int8)
    zeros = torch.randint(-half, half, (40, groups), generator=chance).to(torch.int8) if zero else None
    return Packed(numbers, torch.rand(40, groups, generator=chance) - 0.5, zeros, bits, None, None)


@needs_engine
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (8, 3), (6, 1), (4, 1), (4, 3), (4, 6), (3, 2), (2, 1)])
def test_a_layer_of_integers_gives_the_product_of_its_floats(bits: int, groups: int, zero: bool) -> None:
    import openvino
    from openvino import opset14 as ops

    packed = layer(bits, groups, zero)
    x = ops.parameter([-1, 96], openvino.Type.f32)
    graph = openvino.Model([ops.matmul(x, _integers(packed), False, True)], [x])
    inputs: Tensor = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    found = core().compile_model(graph, "CPU", options)(inputs.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(found), inputs @ packed.weight().T, atol=1e-5 * 2**bits, rtol=1e-5)
