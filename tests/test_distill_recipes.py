"""Distillations of models that do not ship: their cuts fit the published shapes, and run on small folders like them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.pipeline.pipeline import Pipeline
from slimexp.record import record

# Experiment -> the shape of its model as published, which the cut must fit, and the share of the parameters that stays.
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, tuple[dict[str, Any], float]] = {
    "distill_smollm2": (SMOLLM2, 0.51),
    "distill_smollm2_quarter": (SMOLLM2, 0.255),
    "distill_flan_t5": ({"model_type": "t5", "d_model": 512, "d_ff": 1024, "d_kv": 64, "num_heads": 6, "num_layers": 8,
                         "num_decoder_layers": 8, "feed_forward_proj": "gated-gelu", "vocab_size": 32_128}, 0.6),
    "distill_qwen": ({"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                      "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
                      "tie_word_embeddings": True}, 0.51),
}  # fmt: skip
# Of each architecture a model of three blocks: what is other than in the test's own models, and how it is cut.
WIDE = {"num_hidden_layers": 3, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}
TINY: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "distill_smollm2": ("causal_lm", WIDE, ["decoder_layers=[0,2]", "ffn=32"]),
    "distill_smollm2_quarter": ("causal_lm", WIDE, ["decoder_layers=[0,2]", "ffn=32", "hidden=18"]),
    "distill_flan_t5": (
        "seq2seq",
        {"num_layers": 3, "num_decoder_layers": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        ["encoder_layers=[0,2]", "decoder_layers=[0,2]", "ffn=32"],
    ),
    "distill_qwen": (
        "causal_lm",
        {"model_type": "qwen3", "num_hidden_layers": 3, "head_dim": 16},
        ["decoder_layers=[0,2]", "ffn=32"],
    ),
}
SHORT = ["logger=none", "trainer=fast", "model.max_length=16", "measure=[size,task]", "measure.task.limit=4",
         "pipeline.distill.steps=2", "pipeline.distill.batch_size=2", "pipeline.distill.cut.calibration_batches=1",
         "pipeline.distill.lr_scheduler.num_warmup_steps=1"]  # fmt: skip


def parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return int(AutoModel.from_config(config).num_parameters())


def cut_config(cut: DictConfig, shape: dict[str, Any]) -> PreTrainedConfig:
    """Config of the student, by what the cut says stays."""
    t5 = shape["model_type"] == "t5"
    keys = {"ffn": "d_ff" if t5 else "intermediate_size", "hidden": "d_model" if t5 else "hidden_size"}
    sizes = {keys[name]: cut[name] for name in keys if cut[name] is not None}
    stacks = {"encoder_layers": "num_layers", "decoder_layers": "num_decoder_layers" if t5 else "num_hidden_layers"}
    sizes |= {key: len(cut[stack]) for stack, key in stacks.items() if cut[stack] is not None}
    heads = {} if t5 or "head_dim" in shape else {"head_dim": shape["hidden_size"] // shape["num_attention_heads"]}
    return AutoConfig.for_model(**{**shape, **heads, **sizes})


@pytest.mark.parametrize("experiment", SHAPES)
def test_the_cut_fits_the_published_shape(experiment: str) -> None:
    shape, share = SHAPES[experiment]
    cut = compose([f"+experiment={experiment}"]).pipeline.distill.cut
    dense = AutoConfig.for_model(**shape)
    build(cut).validate(dense)
    stays = parameters(cut_config(cut, shape)) / parameters(dense)
    assert share - 0.05 < stays < share


@pytest.mark.parametrize("experiment", TINY)
def test_a_recipe_runs_on_a_folder_of_the_same_architecture(
    tiny_folder: Callable[..., Path], table: Path, tmp_path: Path, experiment: str
) -> None:
    task, shape, cut = TINY[experiment]
    path = tiny_folder(task, **shape)
    cuts = [f"pipeline.distill.cut.{line}" for line in cut]
    text = ["data=files", f"data.path={table}", f"data.task={task}", "data.columns.source=source",
            "data.columns.target=target"]  # fmt: skip
    chosen = [f"+experiment={experiment}", "model=pretrained", f"model.path={path}", f"runs={tmp_path / 'runs'}"]
    cfg = compose([*chosen, *text, *SHORT, *cuts])
    check(cfg)
    metrics = Pipeline(cfg, overrides=[]).run()
    dense = record.read(tmp_path / "runs" / record.FILE)[0].metrics
    assert metrics["params_live"] < 0.85 * dense["params_live"]


def test_a_recipe_names_a_model_of_the_hub_or_leaves_it_open() -> None:
    assert OmegaConf.is_missing(compose(["+experiment=distill_smollm2"]).model, "path")
    named = {name: compose([f"+experiment={name}"]).model.path for name in ("distill_flan_t5", "distill_qwen")}
    assert all("/" in path for path in named.values())
