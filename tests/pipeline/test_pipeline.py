"""A run leaves artifacts, measures, curves and records, and what is recorded is what was made."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slimexp import artifact
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.minmax import MinMax
from slimexp.record import record
from slimexp.weight.attachment import attach, attached
from slimexp.weight.mask import Mask

Make = Callable[..., Any]
FILES = ["artifact", "curves.jsonl", "lock", "measures.json"]


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_a_run_leaves_artifacts_measures_curves_and_records(
    pipeline: Make, short: Make, weights: Make, same_tensors: Make, overrides: Make, task: str
) -> None:
    run = pipeline(overrides("finetune", *short("finetune"), task=task))
    metrics = run.run()
    dense, stage = run.stages
    assert (dense.name, stage.name) == ("dense", "finetune") and stage.parent == dense.key
    assert stage.folder == Path(run.cfg.runs) / "run" / f"finetune-{stage.key}"
    for folder in (dense.folder, stage.folder):
        assert (folder / "artifact" / "manifest.json").exists() and (folder / "measures.json").exists()
    assert not stage.checkpoint.exists() and len(stage.curves.read_text().splitlines()) == 5
    assert sorted(path.name for path in stage.folder.iterdir()) == FILES
    assert run.corpus.headline in metrics and metrics["disk_mb"] > 0
    assert not same_tensors(weights(run), load_file(dense.artifact / "model.safetensors"))


def test_the_record_line_has_everything(pipeline: Make, short: Make, records: Make, overrides: Make) -> None:
    arguments = overrides("finetune", *short("finetune"), "seed=3", "name=other")
    run = pipeline(arguments)
    metrics = run.run()
    first, last = records(run)
    assert (first["stage"], first["technique"], first["parent"]) == ("dense", "dense", None)
    assert (last["stage"], last["technique"], last["parent"]) == ("finetune", "Finetune", first["key"])
    assert last["schema"] == record.SCHEMA and last["name"] == "other" and last["seed"] == 3
    assert last["overrides"] == arguments
    assert last["config"]["pipeline"]["finetune"]["steps"] == 5 and last["config"]["seed"] == 3
    assert last["directions"]["exact_match"] == "max" and last["directions"]["disk_mb"] == "min"
    assert first["baseline_key"] == last["baseline_key"] == first["key"]
    assert last["metrics"] == metrics and last["baseline"] == first["metrics"] == first["baseline"]
    assert (last["headline"], last["direction"]) == (run.corpus.headline, run.corpus.direction)
    assert last["trivial"] == run.corpus.trivial(run.corpus.splits["test"])
    assert last["seconds"]["train"] > 0 < last["seconds"]["measure"] and last["reused"] is False
    assert {"torch", "transformers"} <= last["versions"].keys() and last["hardware"]["cores"]
    assert "git" in last and last["kernel"] == "float32 matmul"
    runs = Path(run.cfg.runs)
    assert (runs / last["artifact"]).is_dir() and (runs / last["curves"]).is_file() and first["curves"] is None
    assert [row.key for row in record.read(runs)] == [first["key"], last["key"]]


def test_one_shot_trains_nothing(
    pipeline: Make, weights: Make, records: Make, overrides: Make, fits: list[str]
) -> None:
    run = pipeline(overrides("prune", "pipeline.prune.steps=0", "pipeline.prune.sparsity=0.5"))
    run.run()
    assert fits == []
    assert records(run)[-1]["curves"] is None and not run.stages[-1].curves.exists()
    zeros = [float((tensor == 0).float().mean()) for name, tensor in weights(run).items() if ".wo.weight" in name]
    assert zeros == [pytest.approx(0.5, abs=0.01)] * 4


def test_quantization_with_a_teacher_is_a_config(
    pipeline: Make, short: Make, overrides: Make, tiny_folder: Make
) -> None:
    kl = ["+loss@pipeline.quantize.losses.kl=kl", *short("quantize")]
    run = pipeline(overrides("quantize", *kl))
    run.run()  # the dense model teaches where no other is named
    rows = [json.loads(line) for line in run.stages[-1].curves.read_text().splitlines()]
    assert all({"ce", "kl"} <= row.keys() for row in rows) and rows[0]["kl"] > 0
    large = tiny_folder("seq2seq", name="large", d_model=64)
    named = ["+model@pipeline.quantize.teacher=pretrained", f"pipeline.quantize.teacher.path={large}",
             "pipeline.quantize.teacher.max_length=16"]  # fmt: skip
    other = pipeline(overrides("quantize", *kl, *named))
    other.run()
    taught = [json.loads(line) for line in other.stages[-1].curves.read_text().splitlines()]
    assert taught[0]["ce"] == rows[0]["ce"] and taught[0]["kl"] != rows[0]["kl"]
    with pytest.raises(ValueError, match="no loss reads the teacher"):
        pipeline(overrides("quantize", *short("quantize"), *named))


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_prune_quantize_distill_keeps_masks_in_the_packed_weights(
    pipeline: Make, short: Make, records: Make, overrides: Make, task: str
) -> None:
    arguments = overrides("prune_quantize_distill", task=task)
    for stage in ("prune", "quantize", "distill"):
        arguments += [*short(stage), f"pipeline.{stage}.optimizer.weight_decay=0.5"]
    run = pipeline([*arguments, "pipeline.prune.every=1", "pipeline.quantize.activation_bits=null"])
    metrics = run.run()
    _, pruned, quantized, distilled = run.stages

    def masks(folder: Path) -> dict[str, Tensor]:
        found = attached(artifact.load(folder).model)
        return {place.module: a.mask for place, a in found if isinstance(a, Mask)}

    expected = masks(pruned.artifact)
    family = artifact.deployed(distilled.artifact)
    layers = family.compressible()
    assert expected.keys() == layers.keys()
    for name, mask in expected.items():
        assert float((~mask).float().mean()) == pytest.approx(0.5, abs=0.01)
        assert (layers[name].weight[~mask] == 0).all()
    for later in (quantized, distilled):
        assert all(torch.equal(mask, expected[name]) for name, mask in masks(later.artifact).items())
    trained = artifact.load(distilled.artifact).model
    assert any(isinstance(a, Quantizer) for _, a in attached(trained))
    for name, layer in layers.items():  # what was trained is what was packed
        assert torch.equal(layer.weight, trained.get_submodule(name).weight)

    history = artifact.read_manifest(distilled.artifact)["stages"]
    assert [stage["technique"] for stage in history] == ["Prune", "Quantize", "Distill"]
    assert [stage["key"] for stage in history] == [pruned.key, quantized.key, distilled.key]
    rows = records(run)
    assert [row["stage"] for row in rows] == ["dense", "prune", "quantize", "distill"]
    assert rows[2]["metrics"]["weights_mb"] < rows[0]["metrics"]["weights_mb"]
    assert metrics["weights_mb"] == pytest.approx(rows[2]["metrics"]["weights_mb"])
    assert metrics["params_nonzero"] < 0.8 * rows[0]["metrics"]["params_nonzero"]
    assert all(row["baseline"] == rows[0]["metrics"] for row in rows)


def test_random_weights_are_no_baseline(
    pipeline: Make, short: Make, records: Make, overrides: Make, tmp_path: Path
) -> None:
    arguments = [a for a in overrides("finetune", *short("finetune")) if not a.startswith("model")]
    tiny = "{model_type: t5, d_model: 32, d_kv: 8, d_ff: 48, num_heads: 4, num_layers: 1, num_decoder_layers: 1}"
    arguments += ["model=scratch", f"model.config={tiny}", "model.max_length=16"]
    cut = ["+technique@pipeline.distill=distill", "+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=32"]
    run = pipeline([*arguments, *cut, *short("distill")])
    run.run()
    trained, distilled = records(run)
    assert (trained["stage"], distilled["stage"]) == ("finetune", "distill")
    assert trained["baseline"] == trained["metrics"] == distilled["baseline"]
    assert trained["baseline_key"] == trained["key"] == distilled["baseline_key"]


def test_trackers_find_the_last_stage_under_one_name(
    pipeline: Make, short: Make, overrides: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    summaries: dict[str, dict[str, float]] = {}
    monkeypatch.setattr(
        "slimexp.logger.none.Silent.summary", lambda self, stage, metrics: summaries.update({stage: metrics})
    )
    metrics = pipeline(overrides("finetune", *short("finetune"))).run()
    assert list(summaries) == ["dense", "finetune", "final"] and summaries["final"] == summaries["finetune"] == metrics


def test_what_comes_in_small_is_compared_with_the_dense_model(
    pipeline: Make, short: Make, records: Make, overrides: Make
) -> None:
    """A cut-out model with the one it was cut from, a compressed one with the one that is named."""
    arguments = overrides("finetune", *short("finetune"))
    path = next(line.removeprefix("model.path=") for line in arguments if line.startswith("model.path="))
    cut = [f"model.source.{line}" for line in (f"path={path}", "max_length=16")] + ["model.cut.ffn=24"]
    cut_out = pipeline([line for line in arguments if not line.startswith("model")] + ["model=cut_out", *cut])
    cut_out.run()
    dense, start, tuned = records(cut_out)
    assert [row["stage"] for row in (dense, start, tuned)] == ["dense", "start", "finetune"]
    assert {row["baseline_key"] for row in (dense, start, tuned)} == {dense["key"]}
    assert start["metrics"]["params_live"] == tuned["metrics"]["params_live"] < dense["metrics"]["params_live"]

    pruned = pipeline(overrides("prune", *short("prune")))
    pruned.run()
    source = [line for line in overrides("distill", *short("distill")) if not line.startswith("model.path=")]
    source += [f"model.path={pruned.stages[-1].artifact}", "name=again"]
    with pytest.raises(ValueError, match=r"model is compressed \(prune\): name the dense model by model@baseline="):
        pipeline(source)
    again = pipeline([*source, "model@baseline=pretrained", f"baseline.path={path}", "baseline.max_length=16"])
    again.run()
    dense, start, distilled = records(again)[-3:]
    assert (start["stage"], start["parent"], distilled["parent"]) == ("start", None, start["key"])
    assert {row["baseline_key"] for row in (dense, start, distilled)} == {dense["key"]}
    history = artifact.read_manifest(again.stages[-1].artifact)["stages"]
    assert [stage["name"] for stage in history] == ["prune", "distill"]
    assert distilled["metrics"]["params_nonzero"] < 0.9 * dense["metrics"]["params_nonzero"]


def test_a_new_classifier_is_trained_first_and_what_that_gives_is_the_dense_model(
    pipeline: Make, short: Make, records: Make, tiny: Make, overrides: Make, tmp_path: Path
) -> None:
    """An encoder without a classifier, as sentence encoders are shipped: random answers are no baseline."""
    family = tiny("classification")
    family.model.base_model.save_pretrained(tmp_path / "encoder")
    family.tokenizer.save_pretrained(tmp_path / "encoder")
    encoder = f"model.path={tmp_path / 'encoder'}"
    with pytest.raises(ValueError, match="has a classifier that nobody trained"):
        pipeline(overrides("prune", encoder, task="classification"))
    lines = overrides(
        "finetune_quantize", encoder, *short("finetune"), "pipeline.quantize.steps=0", task="classification"
    )
    run = pipeline(lines)
    run.run()
    start, trained, quantized = run.stages
    assert (start.name, run.reference) == ("start", trained) and run.dense is None
    finetuned, last = records(run)  # random answers are recorded nowhere
    assert finetuned["stage"] == "finetune" and finetuned["key"] == finetuned["baseline_key"] == last["baseline_key"]
    assert last["stage"] == "quantize" and last["baseline"] == finetuned["metrics"] and quantized.artifact.is_dir()


@pytest.mark.parametrize("quantizes", [False, True])
def test_weights_that_a_type_cannot_hold_are_refused_by_name(quantizes: bool, tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    if quantizes:
        attach(next(iter(family.compressible().values())), "weight", MinMax(bits=8, group_size=None))
    with torch.no_grad():
        family.model.model.norm.weight[3] = 1e5
    artifact.save(family, tmp_path / "whole", dtype=torch.bfloat16, stages=[])
    with pytest.raises(
        ValueError, match=r"'model\.norm\.weight' holds 1e\+05, and float16 at most 65504: set save_dtype"
    ):
        artifact.save(family, tmp_path / "half", dtype=torch.float16, stages=[])
    assert not (tmp_path / "half").exists()


def test_memory_is_released_between_stages_without_a_pass_over_the_libraries(
    counted: None, pipeline: Make, short: Make, overrides: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several hundred thousand objects, which take a quarter of a second each time."""
    left_out: list[int] = []
    before = gc.get_freeze_count()
    monkeypatch.setattr("slimexp.pipeline.pipeline.release", lambda: left_out.append(gc.get_freeze_count()))
    pipeline(overrides("finetune", *short("finetune"), "measure=[]")).run()
    assert len(left_out) == 2 and min(left_out) > 100_000
    assert gc.get_freeze_count() <= before, "of those that were frozen before some are gone"
