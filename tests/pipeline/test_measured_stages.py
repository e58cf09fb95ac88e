"""Stages that others go on from are measured unless that is not asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimexp.record import record

Make = Callable[..., Any]
CHAIN = [
    "pipeline=prune_quantize_distill", "logger=none", "trainer=fast", "measure=[size]", "pipeline.quantize.steps=0",
    *(f"pipeline.{stage}.{value}" for stage in ("prune", "distill") for value in ("steps=2", "batch_size=4")),
]  # fmt: skip


def test_the_dense_model_and_the_last_stage_alone_then_the_others_too(
    tiny: Make, write_table: Make, pipeline: Make, tmp_path: Path
) -> None:
    family = tiny("seq2seq")
    family.model.save_pretrained(tmp_path / "dense")
    family.tokenizer.save_pretrained(tmp_path / "dense")
    line = [
        "model=pretrained", f"model.path={tmp_path / 'dense'}", "model.max_length=16", "data=files",
        f"data.path={write_table(tmp_path)}", "data.task=seq2seq", f"runs={tmp_path / 'runs'}", *CHAIN,
    ]  # fmt: skip

    def recorded() -> list[str]:
        return [row.stage for row in record.read(tmp_path / "runs" / "records.jsonl")]

    last = pipeline([*line, "measure_all=false"]).run()
    assert recorded() == ["dense", "distill"]
    assert pipeline([*line, "measure_all=false"]).run() == last  # finished before
    assert pipeline(line).run() == last
    assert sorted(set(recorded())) == ["dense", "distill", "prune", "quantize"]
