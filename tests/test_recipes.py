"""The recipes of one short command, shrunk: on models that ship, with text of a user's own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slimexp.config import composition
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.pipeline.pipeline import Pipeline
from slimexp.record import record

RECIPES = {"slim_llm": "llama_python_source", "slim_seq2seq": "t5_spelling", "slim_encoder": "bert_docstring_topic"}
SHORT = ["logger=none", "model.max_length=16", "measure=[size,task]", "measure.task.limit=4",
         "pipeline.distill.steps=2", "pipeline.distill.batch_size=2", "pipeline.prune_structured.rows=1",
         "pipeline.prune_structured.candidates=1", "pipeline.prune_structured.importance.rows=2",
         "pipeline.prune_structured.axes=[ffn]", "pipeline.prune_structured.budget.share=0.9"]  # fmt: skip


@pytest.fixture
def command(table: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Recipe (and more overrides) -> what a user types, and what makes it short."""

    def make(recipe: str, *more: str) -> list[str]:
        steps = ["pipeline.finetune.steps=1", "pipeline.finetune.batch_size=2"] if recipe == "slim_encoder" else []
        return [
            f"+experiment={recipe}", f"model.path=zoo:{RECIPES[recipe]}", "data=files", f"data.path={table}",
            f"runs={tmp_path / 'runs'}", "trainer=fast", *SHORT, *steps, *more,
        ]  # fmt: skip

    return make


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_needs_a_model_and_text_alone(
    command: Callable[..., list[str]], recipe: str, tmp_path: Path, fits: list[str]
) -> None:
    more = []
    if recipe == "slim_encoder":  # its classes are others than those of the table
        (tmp_path / "topics.csv").write_text(topics())
        more = [f"data.path={tmp_path / 'topics.csv'}"]
    cfg = compose(command(recipe, *more))
    check(cfg)
    run = Pipeline(cfg, overrides=[])
    run.run()
    assert fits[-1] == "Distill" and list(cfg.pipeline)[-3:] == ["prune_structured", "quantize", "distill"]
    rows = record.read(tmp_path / "runs" / record.FILE)
    assert rows[-1].metrics["disk_mb"] < rows[0].metrics["disk_mb"] / 1.5


def topics() -> str:
    """A table with the classes of the shipped classifier."""
    from transformers import AutoConfig

    from slimexp.model.place import ZOO

    labels = AutoConfig.from_pretrained(ZOO / RECIPES["slim_encoder"]).id2label.values()
    lines = [f"words of {label} {i},{label}" for label in labels for i in range(6)]
    return "\n".join(["text,label", *lines]) + "\n"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which torch sees a GPU."""
    monkeypatch.setattr(composition, "has_cuda", lambda: True)
    yield


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_at_length_where_there_is_a_gpu(recipe: str, on_gpu: None) -> None:
    def steps(*overrides: str) -> tuple[Any, int]:
        cfg = compose([f"+experiment={recipe}", *overrides])
        return cfg.trainer.accelerator, cfg.pipeline.distill.steps

    there, here = steps(), steps("trainer=cpu")
    assert (there[0], here[0]) == ("gpu", "cpu") and there[1] >= 10 * here[1]
    assert steps("trainer=cpu", "pipeline.distill.steps=7") == ("cpu", 7)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_shortly_on_a_cpu(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "has_cuda", lambda: False)
    cfg = compose([f"+experiment={recipe}"])
    assert cfg.trainer.accelerator == "cpu" and cfg.pipeline.distill.steps <= 200


DEEPSEEK: dict[str, tuple[str, dict[str, Any]]] = {  # choice of conf/ -> its experiment, and its architecture in small
    "deepseek_r1_distill_qwen_1_5b": ("slim_deepseek", {"model_type": "qwen2", "tie_word_embeddings": False}),
    "deepseek_llm_7b": ("slim_deepseek", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "deepseek_v2_lite": (
        "slim_deepseek_v2_lite",
        {
            "model_type": "deepseek_v2", "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 16,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2, "first_k_dense_replace": 1,
            "n_group": None, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
SHAPED = ["logger=none", "trainer=fast", "model.max_length=16", "measure=[size,task]", "measure.task.limit=4",
          "pipeline.prune_structured.rows=1", "pipeline.prune_structured.candidates=1",
          "pipeline.prune_structured.importance.rows=2", "pipeline.prune_structured.axes=[ffn]",
          "pipeline.prune_structured.multiple=8", "pipeline.prune_structured.min_coverage=0.01",
          "pipeline.prune_structured.budget.share=0.95", "pipeline.distill.steps=2", "pipeline.distill.batch_size=2",
          "pipeline.calibrate.steps=1", "pipeline.calibrate.batch_size=2"]  # fmt: skip


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", DEEPSEEK)
def test_the_article_s_case_in_small(
    tiny_folder: Callable[..., Path], table: Path, tmp_path: Path, model: str, bits: int
) -> None:
    experiment, shape = DEEPSEEK[model]
    path = tiny_folder("causal_lm", **shape)
    chosen = [f"+experiment={experiment}", f"model={model}", f"pipeline.quantize.bits={bits}"]
    assert compose(chosen).model.path.startswith("deepseek-ai/")
    cfg = compose([*chosen, f"model.path={path}", "data=files", f"data.path={table}", f"runs={tmp_path}", *SHAPED])
    check(cfg)
    run = Pipeline(cfg, overrides=[])
    metrics = run.run()
    assert [stage.name for stage in run.stages] == ["dense", "prune_structured", "quantize", "distill", "calibrate"]
    dense = record.read(tmp_path / record.FILE)[0].metrics
    assert metrics["params_live"] < dense["params_live"] and metrics["weights_mb"] < dense["weights_mb"]
    assert metrics["quantize_bits"] == bits and 0 < metrics["quantize_share"] < 1


def test_the_temperature_falls_and_rounding_may_come_last() -> None:
    cfg = compose(["+experiment=slim_deepseek"])
    assert dict(cfg.pipeline.distill.losses.kl.temperature) | {"_target_": ""} == {
        "_target_": "", "start": 5.0, "end": 1.0
    }  # fmt: skip
    last = ["prune_structured", "distill", "calibrate", "quantize"]
    assert list(compose(["+experiment=slim_deepseek", f"pipeline=[{','.join(last)}]"]).pipeline) == last


def test_two_billion_random_weights_are_the_dense_model_of_the_article_s_case(
    table: Path, tmp_path: Path, fits: list[str]
) -> None:
    small = [
        "hidden_size=32",
        "intermediate_size=48",
        "num_hidden_layers=2",
        "num_attention_heads=4",
        "num_key_value_heads=2",
    ]
    lines = [f"model.config.{size}" for size in small] + ["model.tokenizer.vocab_size=300"]
    shaped = [line for line in SHAPED if not line.startswith("measure")]
    text = ["data=files", f"data.path={table}", "data.task=causal_lm", f"runs={tmp_path}", "measure=[size]"]
    cfg = compose(["+experiment=slim_deepseek_2b", *lines, *text, *shaped])
    check(cfg)
    run = Pipeline(cfg, overrides=[])
    run.run()
    assert run.reference.name == "finetune" and fits == ["Distill", "Finetune"]
    whole = compose(["+experiment=slim_deepseek_2b"])
    assert list(composition.chosen(whole.measure)) == ["size", "latency", "memory"]
