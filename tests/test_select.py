"""Budgets name the best model that keeps them, and the nearest where none does."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimexp.record import record
from slimexp.record.record import Record, append
from slimexp.select import main

pytestmark = pytest.mark.fast


@pytest.fixture
def runs(tmp_path: Path, make_record: Callable[..., Record]) -> Path:
    """A dense model of 16 MB and three smaller ones, the smallest the worst."""
    dense = {"cer": 0.01, "disk_mb": 16.0, "latency_p50_ms": 40.0, "exact_match": 0.7}
    rows: dict[str, dict[str, Any]] = {
        "dense": dense,
        "half": {"cer": 0.02, "disk_mb": 8.0, "latency_p50_ms": 30.0, "exact_match": 0.6, "latency_ratio": 0.8},
        "slow": {"cer": 0.02, "disk_mb": 7.0, "latency_p50_ms": 60.0, "exact_match": 0.6, "latency_ratio": 1.5},
        "tiny": {"cer": 0.05, "disk_mb": 2.0, "latency_p50_ms": 10.0, "exact_match": 0.3, "latency_ratio": 0.3},
    }
    for key, metrics in rows.items():
        changes = {"stage": key, "metrics": metrics, "baseline": dense, "artifact": f"{key}/artifact"}
        append(tmp_path / record.FILE, make_record(key, config={"pipeline": {key: {}}}, **changes))
    return tmp_path


@pytest.mark.parametrize(
    ("budgets", "named", "status"),
    [
        ([], "dense", 0),
        (["max_size_mb=10"], "slow", 0),
        (["max_size_mb=10", "max_latency_ms=35"], "half", 0),
        (["max_size_mb=5"], "tiny", 0),
        (["min_exact_match=0.65"], "dense", 0),
        (["max_size_mb=1"], "tiny", 1),
        (["max_size_mb=6", "min_exact_match=0.59"], "slow", 1),
        (["max_latency_ratio=0.5"], "tiny", 0),
    ],
)
def test_names_the_best_within_or_the_nearest(
    runs: Path, budgets: list[str], named: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs), *budgets]) == status
    out = capsys.readouterr().out
    assert str(runs / named / "artifact") in out
    assert ("none fits; the nearest is" in out and "missed: " in out) == bool(status)
    assert ("slower than the dense model" in out) == (named == "slow")


def test_an_engine_has_budgets_once_models_are_exported(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "max_onnx_latency_ms=5"]) == 2
    assert "'onnx_forward_ms'; an export gives it: python -m slimexp.export ARTIFACT format=onnx; there are" in (
        capsys.readouterr().err
    )
    for one, (ms, size) in {"half": (8.0, 9.0), "slow": (4.0, 8.0), "tiny": (2.0, 3.0)}.items():
        (of,) = [row for row in record.read(runs) if row.key == one]
        figures = {"onnx_logit_gap": 1e-6, "onnx_forward_ms": ms, "onnx_disk_mb": size}
        append(runs / record.FILE, replace(of, metrics=figures, directions={"onnx_forward_ms": "min"}))
    for budgets, named in (["max_onnx_latency_ms=5"], "slow"), (["max_onnx_size_mb=4"], "tiny"):
        assert main([str(runs), *budgets]) == 0
        assert str(runs / named / "artifact") in capsys.readouterr().out


def test_names_what_the_errors_do_not_separate_from_the_best(
    tmp_path: Path, make_record: Callable[..., Record], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"best": (0.020, 8.0), "like": (0.021, 6.0), "small": (0.022, 4.0), "worse": (0.05, 2.0)}
    for key, (cer, disk) in rows.items():
        metrics = {"cer": cer, "cer_stderr": 0.002, "disk_mb": disk}
        append(tmp_path / record.FILE, make_record(key, config={"pipeline": {key: {}}}, stage=key, metrics=metrics))
    assert main([str(tmp_path), "max_size_mb=10"]) == 0
    out = capsys.readouterr().out
    told = "not separable from it by cer, unpaired: 2 of those that fit, the smallest small (cer 0.022, disk_mb 4)"
    assert told in out
    assert main([str(tmp_path), "max_size_mb=3"]) == 0
    assert "not separable" not in capsys.readouterr().out


def test_names_what_is_surely_not_worse_than_dense(
    tmp_path: Path, make_record: Callable[..., Record], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the worse end of the interval: a point that may be worse by more is not named, however good it looks."""
    rows = {"dense": (0.020, 8.0, 0.0), "sure": (0.022, 6.0, 0.0005), "open": (0.0215, 4.0, 0.004)}
    for key, (cer, disk, error) in rows.items():
        sides = {"_low": -2, "": 0, "_high": 2}
        ends = {f"cer_difference{end}": cer - 0.02 + side * error for end, side in sides.items()}
        metrics = {"cer": cer, "cer_stderr": 0.002, "disk_mb": disk} | (ends if error else {})
        changes = {"metrics": metrics, "baseline": {"cer": 0.02, "disk_mb": 8.0}, "baseline_key": "dense"}
        append(tmp_path / record.FILE, make_record(key, config={"pipeline": {key: {}}}, stage=key, **changes))
    assert main([str(tmp_path), "max_size_mb=7"]) == 0
    assert ": open\n" in capsys.readouterr().out
    assert main([str(tmp_path), "max_size_mb=7", "not_worse_by=0.06"]) == 0
    out = capsys.readouterr().out
    assert ": sure\n" in out and "within: disk_mb <= 7, kept surely not worse than dense by more than 0.06" in out
    assert "kept minus dense -0.0351" in out and "by their differences from dense" in out
    assert main([str(tmp_path), "max_size_mb=7", "not_worse_by=0.01"]) == 1
    assert "missed: kept surely not worse than dense by more than 0.01, may be by 0.05" in capsys.readouterr().out
    for wrong in (["not_worse_by=x"], ["not_worse_by=-1"], ["not_worse_by=1", "not_worse_by=2"]):
        assert main([str(tmp_path), *wrong]) == 2
        assert "write not_worse_by=NUMBER once, with a number of at least 0" in capsys.readouterr().err


def test_an_unknown_error_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs)])
    assert "cer: one seed, no error known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (["max_size_mb=inf"], "must be max_METRIC=NUMBER or min_METRIC=NUMBER, got 'max_size_mb=inf'"),
        (["size=3"], "must be max_METRIC=NUMBER or min_METRIC=NUMBER, got 'size=3'"),
        (["max_size_mb=big"], "got 'max_size_mb=big'"),
        (["max_exact_mach=1"], "no record has the metric 'exact_mach'; did you mean 'max_exact_match'?"),
        (["max_size=4"], "no record has the metric 'size'; did you mean 'max_size_mb'?"),
        (["min_latency=4"], "no record has the metric 'latency'; did you mean 'min_latency_ms'?"),
        (
            ["max_peak_mb=4"],
            "'peak_mb'; the measure memory gives it: train or evaluate with 'measure=[size,task,memory]'; ",
        ),
        (["size_mb=4"], "got 'size_mb=4': write max_size_mb=4 or min_size_mb=4\n"),
        (["size=4"], "got 'size=4': write max_size_mb=4 or min_size_mb=4\n"),
        (["exact_match=0.5"], "got 'exact_match=0.5': write max_exact_match=0.5 or min_exact_match=0.5\n"),
    ],
)
def test_wrong_budgets_are_one_line(
    runs: Path, budgets: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs), *budgets]) == 2
    assert message in capsys.readouterr().err


def test_no_records_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "max_size_mb=1"]) == 2
    assert "no records in" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("budgets", "status", "line"),
    [
        (["min_exact_match=0.5"], 0, "other: not asked, no model there has exact_match"),
        (["max_size_mb=10"], 1, "other: none fits; the nearest is"),
        (["max_size_mb=10", "min_exact_match=0.5"], 0, "other: not asked"),
        (["max_size_mb=1", "min_exact_match=0.5"], 1, "none fits"),
        (["max_f1=1", "min_exact_match=0.5"], 1, "unknown corpus: not asked, no model there has f1"),
    ],
)
def test_a_corpus_that_a_budget_does_not_concern_does_not_count(
    runs: Path,
    budgets: list[str],
    status: int,
    line: str,
    make_record: Callable[..., Record],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {"_target_": "slimexp.data.other.Other"}
    changes: dict[str, Any] = {"headline": "f1", "direction": "max", "baseline": {"f1": 0.9}, "baseline_key": "d2"}
    figures = {"f1": 0.8, "disk_mb": 300.0}
    append(runs / record.FILE, make_record("o", config={"data": data}, metrics=figures, **changes))
    unranked = {"_target_": "slimexp.data.timed.Timed"}
    append(runs / record.FILE, make_record("t", config={"data": unranked}, metrics={"disk_mb": 99.0}, baseline={}))
    assert main([str(runs), *budgets]) == status
    out = capsys.readouterr().out
    assert line in out and "timed: not asked, no model there has" in out


def test_a_language_model_is_chosen_by_its_perplexity_beside_dense(
    tmp_path: Path,
    make_record: Callable[..., Record],
    likelihoods: Callable[..., dict[str, float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dense = {**likelihoods(10.0), "disk_mb": 16.0}
    rows = {"dense": dense, "near": {**likelihoods(10.8), "disk_mb": 8.0}, "far": {**likelihoods(13.0), "disk_mb": 2.0}}
    about = {"headline": "bits_per_byte", "trivial": 4.5, "baseline": dense}
    for key, metrics in rows.items():
        config = {"pipeline": {key: {}}}
        append(tmp_path / record.FILE, make_record(key, stage=key, metrics=metrics, config=config, **about))
    assert main([str(tmp_path), "max_perplexity_ratio=1.1", "max_size_mb=10"]) == 0
    shown = capsys.readouterr().out
    assert "near" in shown and "perplexity 10.8, perplexity_ratio 1.08, disk_mb 8" in shown and "kept" not in shown
    assert main([str(tmp_path), "min_kept=0.9", "max_size_mb=10"]) == 0  # still understood


@pytest.fixture
def there(runs: Path, tiny: Callable[..., Any]) -> Path:
    """The runs, of which the model of 8 MB is on the disk."""
    import torch

    from slimexp import artifact

    artifact.save(tiny("causal_lm"), runs / "half" / "artifact", dtype=torch.float32, stages=[])
    return runs


def test_the_model_that_fits_is_exported_and_compared(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budgets = ["max_size_mb=10", "max_latency_ms=35"]
    assert main([str(there), *budgets, "export=hf", f"out={there / 'small'}"]) == 0
    out = capsys.readouterr().out
    assert str(there / "half" / "artifact") in out
    (written,) = (line for line in out.splitlines() if line.startswith(f"{there / 'small'}: "))
    assert "MB" in written
    assert json.loads((there / "small" / "slimexp_export.json").read_text())["agreement"]["gap"] == 0
    assert main([str(there), *budgets, "export=hf"]) == 0
    assert (there / "half" / "hf" / "model.safetensors").is_file()


def test_what_does_not_fit_is_named_and_not_exported(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(there), "max_size_mb=1", "export=hf"]) == 1
    out = capsys.readouterr().out
    assert "none fits; the nearest is tiny" in out and out.endswith("nothing is exported\n")
    assert not list(there.rglob("hf"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["export=onyx"], "there is no format 'onyx', did you mean 'onnx'?"),
        (["export=nothing_like_it"], "there is no format 'nothing_like_it': there are compressed_tensors, "),
        (["out=somewhere"], "'out=somewhere' is of an export, and none is asked for: add export=FORMAT"),
        (["export=hf", "export.tolerence=1"], "tolerence"),
        (["max_size_mb=5", "export=hf"], "tiny has no artifact in "),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    there: Path, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown format before the records are read."""
    assert main([str(there), "max_latency_ms=35", *settings]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.splitlines()) == 1
    assert ("within" in shown.out) == (len(settings) > 1)
    assert not list(there.rglob("slimexp_export.json"))


def test_of_several_corpora_it_says_how_many_have_no_model_that_fits(
    there: Path, make_record: Callable[..., Record], capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"_target_": "slimexp.data.other.Other"}
    append(there / record.FILE, make_record("o", config={"data": data}, metrics={"cer": 0.1, "disk_mb": 300.0}))
    assert main([str(there), "max_size_mb=10", "export=hf"]) == 1
    assert capsys.readouterr().out.endswith("\nno model fits in 1 of 2 corpora, so nothing is exported\n")


def test_models_of_several_corpora_are_not_written_to_one_folder(
    there: Path, make_record: Callable[..., Record], capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"_target_": "slimexp.data.other.Other"}
    append(there / record.FILE, make_record("o", config={"data": data}, metrics={"cer": 0.1, "disk_mb": 3.0}))
    assert main([str(there), "max_size_mb=10", "export=hf", "out=here"]) == 2
    assert "2 corpora have a model each, which out= would write to one folder" in capsys.readouterr().err
