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

    from slimexp.model.loading import ZOO

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
