"""Evaluating: figures of the pipeline's own record, beside the dense model where one is named."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slimexp import artifact
from slimexp.analysis.section import sections
from slimexp.config.command_line import main
from slimexp.config.composition import compose
from slimexp.evaluate import evaluate
from slimexp.pipeline.pipeline import Pipeline
from slimexp.record import record
from slimexp.record.record import Record

Evaluate = Callable[..., Record]
MEASURES = "measure=[size,task]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def data(write_table: Callable[[Path], Path], home: Path) -> list[str]:
    return ["data=files", f"data.path={write_table(home)}", "data.task=seq2seq"]


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Any], data: Sequence[str], home: Path) -> Pipeline:
    """A finished one-shot pruning; its files are read and never written to."""
    family = tiny("seq2seq")
    family.model.save_pretrained(home / "dense")
    family.tokenizer.save_pretrained(home / "dense")
    arguments = [
        "model=pretrained", f"model.path={home / 'dense'}", "model.max_length=16", *data, "pipeline=prune",
        "pipeline.prune.steps=0", "logger=none", "trainer=fast", f"runs={home / 'runs'}", MEASURES,
    ]  # fmt: skip
    pipeline = Pipeline(compose(arguments), overrides=arguments)
    pipeline.run()
    return pipeline


@pytest.fixture
def evaluated(data: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Artifact (baseline, overrides) -> its record."""

    def call(folder: Path, baseline: Path | None = None, *more: str) -> Record:
        arguments = [*data, "model=pretrained", f"model.path={folder}", MEASURES, f"runs={tmp_path / 'evaluated'}"]
        if baseline:
            arguments += ["model@baseline=pretrained", f"baseline.path={baseline}"]
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, *more])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        main(evaluate, "evaluate")
        return record.read(tmp_path / "evaluated")[-1]

    return call


def test_an_artifact_beside_its_dense_model_gives_the_record_of_the_pipeline(
    run: Pipeline, evaluated: Evaluate
) -> None:
    dense, pruned = run.stages
    expected = record.read(run.cfg.runs)[-1]
    row = evaluated(pruned.artifact, dense.artifact)
    assert (row.metrics, row.baseline, row.trivial) == (expected.metrics, expected.baseline, expected.trivial)
    assert not row.dense
    assert evaluated(dense.artifact).key == row.baseline_key


def test_a_compressed_artifact_alone_is_not_its_own_dense_model(run: Pipeline, evaluated: Evaluate) -> None:
    row = evaluated(run.stages[-1].artifact)
    compared = record.read(run.cfg.runs)[-1].metrics
    assert row.metrics == {name: value for name, value in compared.items() if "_difference" not in name} != compared
    assert (row.baseline, row.baseline_key, row.dense) == ({}, None, False)
    (section,) = sections([row])
    assert [point.dense for point in section.points] == [False]


def test_a_model_that_was_not_compressed_is_its_own_dense_model(run: Pipeline, evaluated: Evaluate) -> None:
    row = evaluated(run.stages[0].artifact)
    assert row.dense and row.baseline == row.metrics
    assert evaluated(Path(run.cfg.model.path), None, "model.max_length=16").metrics["cer"] == row.metrics["cer"]


def test_a_cpu_grades_part_of_a_long_split_and_says_so(
    run: Pipeline, evaluated: Evaluate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimexp.measure.task.ON_CPU", 10)
    dense, pruned = (evaluated(stage.artifact) for stage in run.stages)
    assert dense.config["measure"]["task"]["limit"] == pruned.config["measure"]["task"]["limit"] == 2
    rows = int(dense.metrics["task_split_rows"])
    assert f"graded on 2 of {rows} rows, spread evenly: measure.task.limit=null grades all" in capsys.readouterr().out
    whole = evaluated(run.stages[-1].artifact, None, "measure.task.limit=null")
    assert len(sections([dense, pruned])) == 1 and len(sections([dense, pruned, whole])) == 2


def test_refused_before_anything_is_loaded(
    run: Pipeline, evaluated: Evaluate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimexp.model.loading import Pretrained

    monkeypatch.delattr(Pretrained, "load")
    dense, pruned = (stage.artifact for stage in run.stages)
    for arguments, message in (
        ((pruned, None, "measure=[latency]"), "is compressed (prune), and latency compares with the dense model"),
        ((dense, pruned), "the baseline must be a dense model"),
        ((dense, None, "data.task=classification", "measure=[lm_eval]"), "drop measure.lm_eval"),
    ):
        with pytest.raises(SystemExit):
            evaluated(*arguments)
        assert message in capsys.readouterr().err


def test_an_artifact_reads_as_many_tokens_as_it_was_made_for(run: Pipeline, evaluated: Evaluate) -> None:
    row = evaluated(run.stages[0].artifact)
    assert artifact.read_manifest(run.stages[0].artifact)["max_length"] == 16
    assert row.config["model"]["max_length"] == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=gpu"], "error: device must be a torch device such as cpu, cuda or cuda:1, got 'gpu'"),
        (["measure=[]"], "error: nothing is measured"),
    ],
)
def test_wrong_words_are_one_line(
    run: Pipeline, evaluated: Evaluate, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluated(run.stages[0].artifact, None, *words)
    assert message in capsys.readouterr().err


def test_a_baseline_stands_beside_every_figure(
    run: Pipeline, evaluated: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    row = evaluated(run.stages[1].artifact, run.stages[0].artifact)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("params_nonzero")]
    ratio = row.metrics["params_nonzero"] / row.baseline["params_nonzero"]
    assert line.endswith(f"   {ratio:.3g}x") and f"dense {row.baseline['params_nonzero']:.6g}" in line
    assert lines[-1].startswith("recorded in ")


def test_every_phase_is_announced_in_a_line_of_its_own(
    run: Pipeline, evaluated: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned = (stage.artifact for stage in run.stages)
    loading = ["  checking the model, the data and the measures", f"  loading {pruned}"]
    for baseline, expected in (
        (None, [*loading, "  measuring size", "  measuring task"]),
        (dense, [*loading, f"  loading {dense}", "  measuring size", "  measuring size of the dense model",
                 "  measuring task", "  measuring task of the dense model"]),
    ):  # fmt: skip
        capsys.readouterr()
        evaluated(pruned, baseline)
        lines = capsys.readouterr().out.splitlines()
        known = "  task: these weights were tested before, reused from "
        assert [line for line in lines if line.startswith("  ") and not line.startswith(known)] == expected
        assert sum(line.startswith(known) for line in lines) == (baseline is not None)  # then for the second time
        assert lines.index("  measuring size") < next(i for i, line in enumerate(lines) if line.startswith("disk_mb"))


def test_weights_that_are_not_finite_are_not_measured(
    tiny_folder: Callable[..., Path], evaluated: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluated(broken(tiny_folder("seq2seq")))
    output = capsys.readouterr()
    assert "'shared.weight' in model.safetensors holds NaN or infinity" in output.err
    assert "cer" not in output.out
    assert not (tmp_path / "evaluated" / record.FILE).exists()


def test_nor_before_they_are_compressed(tiny_folder: Callable[..., Path], data: Sequence[str], tmp_path: Path) -> None:
    arguments = [
        "model=pretrained", f"model.path={broken(tiny_folder('seq2seq'))}", "model.max_length=16", *data,
        "pipeline=quantize", "pipeline.quantize.steps=0", "logger=none", f"runs={tmp_path / 'runs'}", MEASURES,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'shared\.weight' in model\.safetensors holds NaN or infinity"):
        Pipeline(compose(arguments), overrides=arguments).run()
    assert not (tmp_path / "runs" / record.FILE).exists()


def broken(folder: Path) -> Path:
    """The folder with a NaN in its embedding."""
    state = load_file(folder / "model.safetensors")
    state["shared.weight"][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, RuntimeError])
def test_what_is_measured_before_an_end_is_recorded_and_merged(
    run: Pipeline, evaluated: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    stop: type[BaseException], tmp_path: Path,
) -> None:  # fmt: skip
    from slimexp.measure.task import Task

    dense, pruned = run.stages
    with monkeypatch.context() as broken:
        broken.setattr(Task, "measure", lambda *_: (_ for _ in ()).throw(stop("no")))
        with pytest.raises((SystemExit, stop)):
            evaluated(pruned.artifact, dense.artifact)
    (row,) = record.read(tmp_path / "evaluated")
    expected = record.read(run.cfg.runs)[-1]
    assert row.metrics["disk_mb"] == expected.metrics["disk_mb"] and "cer" not in row.metrics
    assert row.baseline["disk_mb"] == expected.baseline["disk_mb"]
    assert capsys.readouterr().out.splitlines()[-1].endswith("records.jsonl: size, of size, task")
    assert evaluated(pruned.artifact, dense.artifact).metrics == expected.metrics
    assert len(record.read(tmp_path / "evaluated")) == 1
    assert sections(record.read(tmp_path / "evaluated"))


def test_nothing_is_recorded_where_nothing_was_measured(
    run: Pipeline, evaluated: Evaluate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from slimexp.measure.size import Size

    monkeypatch.setattr(Size, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit, match="130"):
        evaluated(run.stages[-1].artifact)
    assert not (tmp_path / "evaluated" / record.FILE).exists()
