"""CTranslate2 computes what PyTorch does, by the integers that were packed."""

import json
import struct
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimexp import artifact
from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.export import export
from slimexp.format.base import Artifact, Plain
from slimexp.format.ctranslate2 import Ctranslate2
from slimexp.format.verification import Agreement, Differs
from slimexp.quantizer.fp8 import Fp8
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.static import Static
from slimexp.quantizer.token import Token
from slimexp.serialization.unpack import unpacked
from slimexp.weight.attachment import attach

Make = Callable[..., Any]
TASKS = ("seq2seq", "causal_lm", "classification")
INT8 = partial(MinMax, bits=8, group_size=None)
needs_engine = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def engine() -> None:
    pytest.importorskip("ctranslate2")


def kind(**values: Any) -> Ctranslate2:
    from omegaconf import OmegaConf

    made: Ctranslate2 = build(OmegaConf.merge(OmegaConf.load(CONF_DIR / "format" / "ctranslate2.yaml"), values))
    return made


def exported(model: Artifact, **values: Any) -> tuple[Path, Agreement]:
    folder = model.folder.parent / "export"
    return folder, export(model, kind(**values), "ctranslate2", folder, timed=False).agreement


def stored(file: Path) -> dict[str, np.ndarray]:
    """Name -> tensor of a model.bin (version 6); those of bfloat16 as their bits, aliases left out."""
    data, at = file.read_bytes(), 4

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return value

    def text() -> str:
        length = take("H")
        return str(take(f"{length}s")[:-1].decode())

    text(), take("I")
    tensors = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = ("float32", "int8", "int16", "int32", "float16", "uint16")[take("B")]
        tensors[name] = np.frombuffer(take(f"{take('I')}s"), dtype).reshape(shape)
    return tensors


@needs_engine
@pytest.mark.parametrize("task", TASKS)
def test_floats(task: str, made: Make) -> None:
    folder, agreement = exported(made(task))
    assert agreement.relative < 1e-5 and agreement.same_tokens == agreement.tokens == (
        0 if task == "classification" else 20
    )
    assert (folder / "tokenizer.json").exists()


@needs_engine
@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("seq2seq", {"num_heads": 3}),
        ("seq2seq", {"d_ff": 33, "num_decoder_layers": 1, "tie_word_embeddings": False}),
        ("causal_lm", {"num_key_value_heads": 4, "head_dim": 12}),
        ("causal_lm", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
        ("seq2seq", {"num_heads": 6, "d_kv": 8, "feed_forward_proj": "gated-gelu"}),
        ("causal_lm", {"hidden_size": 28, "head_dim": 8, "intermediate_size": 20, "tie_word_embeddings": False}),
        ("classification", {"intermediate_size": 33, "num_hidden_layers": 1}),
    ],
)
def test_widths_that_pruning_leaves(task: str, values: dict[str, Any], made: Make) -> None:
    assert exported(made(task, **values))[1].relative < 1e-5


@needs_engine
@pytest.mark.parametrize("task", TASKS)
def test_packed_integers_stay_as_they_are(task: str, made: Make) -> None:
    model = made(task, INT8, dtype=torch.bfloat16)
    folder, agreement = exported(model)
    assert agreement.relative < 1e-5
    tensors = stored(folder / "model.bin")
    rows = [
        row.tobytes() for tensor in tensors.values() if tensor.dtype == np.int8 and tensor.ndim == 2 for row in tensor
    ]
    packed = [row.tobytes() for one in unpacked(model.folder).values() for row in one.numbers.numpy()]
    assert sorted(rows) == sorted(packed)
    floats = [tensor for name, tensor in tensors.items() if "embeddings" in name and name.endswith("weight")]
    assert floats and all(tensor.dtype == np.uint16 for tensor in floats)  # bfloat16, as in the artifact


@needs_engine
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_of_integers(tied: bool, tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm", tie_word_embeddings=tied)
    for layer in (*family.compressible().values(), family.model.get_input_embeddings()):
        attach(layer, "weight", INT8())
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "artifact")
    if tied:
        with pytest.raises(ValueError, match=r"'model.embed_tokens' is the head too"):
            exported(model)
    else:
        folder, agreement = exported(model)
        assert agreement.relative < 1e-5 and stored(folder / "model.bin")["decoder/embeddings/weight"].dtype == np.int8


@needs_engine
def test_integers_that_do_not_span_the_range(made: Make) -> None:
    """The engine's own converter would take other steps."""
    model = made("causal_lm", partial(MinMax, bits=8, group_size="tensor"))
    assert exported(model)[1].relative < 1e-5


@needs_engine
def test_more_of_what_a_decoder_has_written(made: Make) -> None:
    model = made("seq2seq")
    folder, _ = exported(model)
    start = model.family.model.config.decoder_start_token_id
    source, target = model.family.token_ids(["standard"])[0], [start, 40, 50, 60]
    expected, actual = (each.logits(source, target) for each in (Plain(model.family.model), kind().load(model, folder)))
    assert actual.shape == expected.shape and np.abs(actual - expected).max() < 1e-5


@needs_engine
def test_int8_rounds_more_than_the_artifact(made: Make) -> None:
    model = made("causal_lm", INT8)
    with pytest.raises(Differs, match=r"something else than PyTorch"):
        exported(model, compute_type="int8")
    assert not (model.folder.parent / "export").exists()
    running = kind(compute_type="int8").load(model, exported(model)[0])
    ids = model.family.token_ids(["standard"])[0]
    gap = np.abs(running.logits(ids, []) - Plain(model.family.model).logits(ids, [])).max()
    assert 1e-4 < gap < 0.5


@needs_engine
def test_classes_are_told(made: Make) -> None:
    folder, _ = exported(made("classification"))
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}


@needs_engine
def test_a_model_that_the_converter_does_not_know(made: Make) -> None:
    model = made("causal_lm", model_type="cohere")
    with pytest.raises(ValueError, match=r"cannot convert this cohere .*take another format") as error:
        exported(model)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in model.folder.parent.iterdir()) == ["artifact"]


def fixed() -> Static:
    static = Static(bits=8, range=MinMax)
    static.start(torch.tensor([-1.0, 2.0]))
    return deepcopy(static)


@pytest.mark.parametrize(
    ("weight", "inputs", "compute_type", "why"),
    [
        (None, None, "int8", "its weights are floats"),
        (partial(MinMax, bits=4, group_size=None), None, "float32", "has some of 4"),
        (partial(MinMax, bits=8, group_size=16), None, "float32", "one for each 16 weights"),
        (partial(MinMax, bits=8, group_size=None, symmetric=False), None, "float32", "no zero points"),
        (partial(Fp8, bits=8, group_size=None, symmetric=True), None, "float32", "no float8"),
        (INT8, partial(Token, bits=8, group_size=None), "float32", "does not round activations"),
        (INT8, fixed, "int8", "those of the model are fixed"),
    ],
)
def test_what_it_cannot_hold(weight: Make, inputs: Make, compute_type: str, why: str, made: Make) -> None:
    model = made("causal_lm", weight, inputs)
    reason = kind(compute_type=compute_type).refusal(model)
    assert reason is not None and why in reason


def test_what_it_can_hold(made: Make) -> None:
    assert kind().refusal(made("causal_lm", INT8)) is None
    assert kind(compute_type="int8").refusal(made("causal_lm", INT8, partial(Token, bits=8, group_size=None))) is None


def test_another_classifier_than_bert_s(made: Make) -> None:
    reason = kind().refusal(made("classification", model_type="roberta", pad_token_id=0, max_position_embeddings=80))
    assert reason is not None and "roberta" in reason


@pytest.mark.parametrize("values", [{"compute_type": "int4"}, {"tolerance": 0.0}, {"tolerance": float("nan")}])
def test_wrong_options(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        kind(**values)
