"""Embeddings packed like the layers: of tokens, positions and segments, in whatever family has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.quantizers import quantizer_compressed_tensors

from slimexp import artifact
from slimexp.loss.base import IGNORE
from slimexp.model.base import Family

Make = Callable[..., Any]
needs_dequantizing_at_load = pytest.mark.skipif(
    not hasattr(quantizer_compressed_tensors.CompressedTensorsHfQuantizer, "get_load_operations"),
    reason=f"transformers {transformers.__version__} cannot load packed embeddings",
)
ROWS = [("one", "two!", 0), ("three and four", "5", 1)]
PACKED = {"embeddings": "true", "activation_bits": None}
ROBERTA = {"model_type": "roberta", "max_position_embeddings": 66}
DISTILBERT = {"model_type": "distilbert", "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
              "max_position_embeddings": 64}  # fmt: skip
OPT = {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": 4}

FAMILIES: list[tuple[str, dict[str, Any], set[str]]] = [
    ("causal_lm", {}, {"embed_tokens", "lm_head"}),
    ("causal_lm", {"tie_word_embeddings": False}, {"embed_tokens"}),
    ("causal_lm", OPT, {"embed_tokens", "embed_positions", "lm_head"}),
    ("classification", {}, {"word_embeddings", "position_embeddings", "token_type_embeddings"}),
    ("classification", ROBERTA, {"word_embeddings", "position_embeddings", "token_type_embeddings"}),
    ("classification", DISTILBERT, {"word_embeddings", "position_embeddings"}),
    ("seq2seq", {}, {"shared", "embed_tokens", "lm_head"}),
]
AUTO = {
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "seq2seq": AutoModelForSeq2SeqLM,
}


@torch.no_grad()
def logits(family: Family) -> Tensor:
    batch = family.encode(ROWS)
    return family.forward(batch)[0][batch["labels"] != IGNORE]


@needs_dequantizing_at_load
@pytest.mark.parametrize(("task", "values", "names"), FAMILIES)
def test_what_was_rounded_is_what_is_packed_and_reloaded(
    tiny: Make, technique: Make, corpus: Make, task: str, values: dict[str, Any], names: set[str],
    tmp_path: Path
) -> None:  # fmt: skip
    stage = technique("quantize", bits=4, group_size=16, **PACKED)
    dense = tiny(task, **values)
    before, in_blocks = logits(dense), set(dense.compressible())
    stage.prepare(dense, corpus(task), None)
    assert {name.rpartition(".")[2] for name in stage.layers.keys() - in_blocks} == names
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    again = AUTO[task].from_pretrained(tmp_path / "a").eval()
    assert not torch.equal(logits(stage.family), before)
    for family in (type(stage.family)(again, stage.family.tokenizer, max_length=64), artifact.load(tmp_path / "a")):
        assert torch.allclose(logits(family), logits(stage.family), atol=1e-5, rtol=0)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    wide = {name for name, module in again.named_modules() if isinstance(module, nn.Embedding)}
    assert not [name for name in wide if f"{name}.weight" in stored and stored[f"{name}.weight"].dtype == torch.float32
                and not name.endswith("relative_attention_bias")]  # fmt: skip


@needs_dequantizing_at_load
@pytest.mark.parametrize(
    ("name", "bits", "group_size"),
    [("minmax", 8, None), ("minmax", 4, None), ("minmax", 4, "tensor"), ("fp8", 8, None)],
)
def test_embeddings_and_their_head_are_packed_once(
    tiny: Make, technique: Make, corpus: Make, name: str, bits: int, group_size: str | None, tmp_path: Path
) -> None:
    chosen = f"quantizer@pipeline.quantize.quantizer={name}"
    stage = technique("quantize", chosen, bits=bits, group_size=group_size, **PACKED)
    stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
    assert stage.finish()["share"] > 0.9
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert not any(name.startswith("lm_head") for name in stored)
    assert "model.embed_tokens.weight_scale" in stored
    plain, resumed = artifact.deployed(tmp_path / "a"), artifact.load(tmp_path / "a")
    assert torch.allclose(logits(plain), logits(stage.family), atol=1e-5)
    assert plain.model.lm_head.weight is plain.model.model.embed_tokens.weight
    assert torch.equal(logits(resumed), logits(stage.family))


@needs_dequantizing_at_load
def test_positions_count_in_what_is_served(tiny: Make, technique: Make, corpus: Make, tmp_path: Path) -> None:
    stage = technique("quantize", bits=4, group_size=16, **PACKED)
    stage.prepare(tiny("classification"), corpus("classification"), None)
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    embeddings = artifact.served(tmp_path / "a").model.bert.embeddings
    trained = stage.model.bert.embeddings
    assert torch.equal(embeddings.position_embeddings.weight, trained.position_embeddings.weight)


@pytest.mark.parametrize(
    "also",
    [["activation_bits=8"], ["activation_bits=null", "+allocation@pipeline.quantize.allocation=mixed_precision"]],
)
def test_embeddings_beside_quantized_activations_or_several_widths(technique: Make, also: list[str]) -> None:
    overrides = [word if word.startswith("+") else f"pipeline.quantize.{word}" for word in also]
    with pytest.raises(
        ValueError, match="quantized embeddings only where activations are left in float and all layers"
    ):
        technique("quantize", "pipeline.quantize.embeddings=true", *overrides)


def test_an_older_transformers_is_named(tiny: Make, technique: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer_compressed_tensors, "CompressedTensorsHfQuantizer", object)
    with pytest.raises(ValueError, match=r"cannot load quantized embeddings: install transformers >= 5\.21, or set"):
        technique("quantize", **PACKED).validate(tiny("classification").model.config, before=[])
