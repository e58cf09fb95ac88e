"""The report: files from records alone, one line and code 2 for what cannot be reported."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from slimexp.record import record
from slimexp.record.record import Record, append
from slimexp.report import main

pytestmark = pytest.mark.fast


def point(key: str, stage: str, cer: float, disk: float, **metrics: float) -> Record:
    dense = {"cer": 0.015, "disk_mb": 16.1, "latency_ratio": 1.0}
    technique = stage.title() if stage != "dense" else "dense"
    return Record(
        time="2026-01-01T00:00:00+00:00",
        name="run",
        stage=stage,
        key=key,
        parent=None,
        technique=technique,
        seed=0,
        overrides=[],
        config={"data": {"_target_": "slimexp.data.spelling.Spelling"}, "pipeline": {stage: {"key": key}}},
        git={"commit": "0123456789abcdef", "dirty": False},
        versions={"torch": "2.13"},
        hardware={"cpu": "A </script> CPU", "gpu": [], "threads": None},
        headline="cer",
        direction="min",
        metrics=dense if stage == "dense" else {"cer": cer, "disk_mb": disk, **metrics},
        directions={},
        baseline=dense,
        baseline_key="d",
        trivial=0.077,
        seconds={},
        reused=False,
        artifact="",
        curves=None,
        kernel="float32 matmul",
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for one in (
        point("d", "dense", 0, 0),
        point("q8", "quantize", 0.016, 8.6, latency_ratio=0.7, latency_ratio_low=0.65, latency_ratio_high=0.75),
        point("q4", "quantize", 0.02, 5.1, latency_ratio=1.4, latency_ratio_low=1.3, latency_ratio_high=1.5),
        point("p", "prune", 0.03, 16.1, params_live=100, params_nonzero=50),
    ):
        append(tmp_path / "runs" / record.FILE, one)
    return tmp_path / "runs"


def test_everything_is_built_from_the_records(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\*!\s+quantize\(key=q4\).* 92 %.* 5\.1 .* 1\.4 \[1\.3, 1\.5\]$", out, re.M)
    assert re.search(r"^\*\s+dense .*0\.015.*100 %", out, re.M)
    assert re.search(r"^\s+prune .* 76 % .* 1z .* 50 %", out, re.M)
    assert "z 0 % smaller: its zeros are stored" in out
    assert "! slower than dense" in out
    assert "no model (best trivial guess)" in out
    assert {path.name for path in runs.iterdir()} == {
        record.FILE,
        "report.csv",
        "report.json",
        "pareto.png",
        "pareto.html",
    }
    assert (runs / "pareto.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((runs / "report.csv").open()))
    assert [row["slower"] for row in rows] == ["0", "1", "0", "0"]
    assert [row["front"] for row in rows] == ["1", "1", "1", "0"]
    (section,) = json.loads((runs / "report.json").read_text())
    assert section["points"][1]["figures"]["cer"]["mean"] == 0.02


def test_figures_of_layers_are_in_report_json_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"cer": 0.02, "disk_mb": 5.0, "sensitivity_nats/encoder.0.q": 0.5}
    record.append(tmp_path / record.FILE, replace(point("q4", "quantize", 0.02, 5.0), metrics=metrics))
    assert main([str(tmp_path)]) == 0
    assert "sensitivity" not in capsys.readouterr().out + (tmp_path / "report.csv").read_text()
    (section,) = json.loads((tmp_path / "report.json").read_text())
    assert section["points"][-1]["layers"]["sensitivity_nats"]["encoder.0.q"]["mean"] == 0.5
    assert main([str(tmp_path), "--x", "unknown"]) == 2
    assert "there are cer, disk_mb" in (err := capsys.readouterr().err) and "sensitivity" not in err


def test_the_page_holds_the_sections(runs: Path) -> None:
    main([str(runs)])
    data = json.loads(re.search(r'id="data">(.*?)</script>', (runs / "pareto.html").read_text(), re.S)[1])  # type: ignore[index]
    assert [len(section["points"]) for section in data["sections"]] == [4]
    assert not data["live"]


def test_noise_and_kernels_are_reported(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(runs / record.FILE, point("n", "quantize", 0.021, 6.0, latency_ratio=1.4, latency_noisy=1.0))
    main([str(runs)])
    out = capsys.readouterr().out
    assert re.search(r"^!~\s+quantize\(key=n\)", out, re.M) and "~ latency is noisy" in out
    data = json.loads(re.search(r'id="data">(.*?)</script>', (runs / "pareto.html").read_text(), re.S)[1])  # type: ignore[index]
    (section,) = data["sections"]
    assert [one["noisy"] for one in section["points"]].count(True) == 1
    assert section["environments"][0]["kernels"] == ["float32 matmul"]


def test_other_axes_and_folder(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--x", "latency_ratio", "--y", "kept", "--out", str(tmp_path / "new" / "deep")]) == 0
    assert "latency_ratio (lower is better) and kept (higher is better)" in capsys.readouterr().out
    assert (tmp_path / "new" / "deep" / "pareto.png").exists()


def test_the_speed_of_another_engine_is_an_axis(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--x", "onnx_forward_ms"]) == 2
    assert "an export gives it: python -m slimexp.export ARTIFACT format=onnx" in capsys.readouterr().err
    for one in [one for one in record.read(runs) if one.key in ("q8", "q4")]:
        figures = {"onnx_logit_gap": 1e-6, "onnx_forward_ms": 2.0 if one.key == "q8" else 1.5}
        append(runs / record.FILE, replace(one, metrics=figures))
    assert main([str(runs), "--x", "onnx_forward_ms"]) == 0
    out = capsys.readouterr().out
    assert "* on the front of onnx_forward_ms (lower is better) and cer" in out
    assert "2 not drawn: onnx_forward_ms or cer was not measured" in out
    (one,) = json.loads((runs / "report.json").read_text())
    assert {one["points"][index]["keys"][0] for index in one["front"]} == {"q8", "q4"}


def test_doubt_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = {"cer": 0.015, "disk_mb": 16.1, "cer_stderr": 0.001}
    rows = [("a", 0.016, 5.0), ("b", 0.0161, 6.0), ("c", 0.05, 7.0)]
    for key, cer, disk in rows:
        one = point(key, "quantize", cer, disk, cer_stderr=0.001)
        append(
            tmp_path / record.FILE,
            replace(one, baseline=dense, time=f"2026-01-0{1 + ord('c') - ord(key)}T00:00:00+00:00"),
        )
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\*\s+quantize\(key=a\) .* 0\.016 ± 0\.001 .* 0 %$", out, re.M)
    assert re.search(r"^\?\s+quantize\(key=b\) .* \d\d %$", out, re.M)
    assert re.search(r"^\s+quantize\(key=c\) .* 100 %$", out, re.M)
    assert "±: one standard error over test rows; one seed" in out and "? not separable" in out
    (section,) = json.loads((tmp_path / "report.json").read_text())
    assert [section["points"][index]["label"] for index in section["finished"]] == [
        f"quantize(key={key})" for key in "cba"
    ]
    history = {row["label"]: row["hypervolume_after"] for row in csv.DictReader((tmp_path / "report.csv").open())}
    assert [float(history[f"quantize(key={key})"]) for key in "cba"] == section["hypervolume_history"]
    assert section["hypervolume_history"] == sorted(section["hypervolume_history"]) and history["dense"] == ""
    assert section["hypervolume_history"][-1] == section["hypervolume"]


def test_an_unknown_error_is_reported(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs)]) == 0
    assert "one seed, no error known: cer of 4 of 4 points" in capsys.readouterr().out
    (section,) = json.loads((runs / "report.json").read_text())
    assert section["probabilities"] == [None] * 4


def test_three_objectives_and_published_points(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = runs.parent / "points.csv"
    points.write_text("label,cer,disk_mb\nOthers 2024,0.001,0.1\nbare,0.001,\n")
    assert main([str(runs), "--z", "latency_ratio", "--reference", str(points)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^☆\s+Others 2024\s+0\.001\s+0\.1$", out, re.M)
    assert "1 ☆ not drawn" in out
    assert "cer (lower is better) and latency_ratio (lower is better)" in out
    # q8 alone is better than the corner everywhere: q4 is slower than dense, the dense model is the corner
    volume = (1 - 8.6 / 16.1) * (1 - 0.016 / 0.077) * (1 - 0.7)
    assert f"hypervolume of the three: {volume:.3f}, in units of the worst that counts" in out
    (section,) = json.loads((runs / "report.json").read_text())
    assert section["volume"] == pytest.approx(volume)
    assert len(section["points"]) == 4 and len(section["published"]) == 2


def test_a_bad_file_of_published_points_is_one_line_and_code_2(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = runs.parent / "points.csv"
    points.write_text("label,cer\nOthers,good\n")
    assert main([str(runs), "--reference", str(points)]) == 2
    assert main([str(runs), "--reference", str(runs / "absent.csv")]) == 2
    bad, absent = capsys.readouterr().err.splitlines()
    assert bad == f"error: cer in row 1 of {points} must be a finite number, got 'good'"
    assert absent == f"error: no file {runs / 'absent.csv'} of published points"


def test_a_single_dense_model_or_no_x_at_all_is_drawn(tmp_path: Path) -> None:
    append(tmp_path / record.FILE, point("d", "dense", 0, 0))
    assert main([str(tmp_path)]) == 0
    bare = point("q", "quantize", 0, 0)
    bare = Record(**{**vars(bare), "metrics": {"cer": 0.1}, "baseline": {"cer": 0.01}})
    append(tmp_path / "bare.jsonl", bare)
    assert main([str(tmp_path / "bare.jsonl"), "--out", str(tmp_path / "bare")]) == 0


def test_a_front_of_nothing_is_drawn_as_none(tmp_path: Path) -> None:
    worse = replace(point("q", "quantize", 0.1, 1.0), baseline={"cer": 0.015})  # than no model at all
    append(tmp_path / record.FILE, worse)
    assert main([str(tmp_path)]) == 0
    (section,) = json.loads((tmp_path / "report.json").read_text())
    assert section["front"] == []


@pytest.mark.parametrize("content", [None, "", "{half\n"])
def test_nothing_to_report_is_one_line_and_code_2(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / record.FILE).write_text(content)
    assert main([str(tmp_path)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no records" in errors[0]
    assert not (tmp_path / "pareto.html").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_code_2(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([str(runs), "--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{tmp_path / 'file'} (a file has that name): choose a folder of your own by --out DIR")


@pytest.mark.parametrize("name", ["report.csv", "report.json", "pareto.png", "pareto.html"])
def test_a_link_in_the_place_of_a_file_is_replaced_and_not_written_through(
    runs: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "other.txt").write_text("other")
    (out / name).symlink_to(tmp_path / "other.txt")
    (out / f".99999999.{name}").write_text("left by a process that was killed")
    assert main([str(runs), "--out", str(out)]) == 0
    assert (tmp_path / "other.txt").read_text() == "other" and not (out / name).is_symlink()
    assert {path.name for path in out.iterdir()} == {"report.csv", "report.json", "pareto.png", "pareto.html"}


def test_a_missing_folder_or_metric_is_one_line_and_code_2(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "nothing")]) == 2
    assert main([str(runs), "--x", "disc_mb"]) == 2
    missing, unknown = capsys.readouterr().err.splitlines()
    assert "no file or folder" in missing
    assert "'disc_mb'; there are cer, disk_mb" in unknown
