"""What goes into the page: all figures with their error bars, true ways, paths and links, lineage and budgets."""

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimexp.analysis.section import Section, load
from slimexp.page.content import content
from slimexp.record import record
from slimexp.record.record import Record, append, read
from slimexp.record.schema import PAIRED

pytestmark = pytest.mark.fast


@pytest.fixture
def section(shared_runs: Path, sections: list[Section]) -> dict[str, Any]:
    (one,) = content(sections, shared_runs, shared_runs)["sections"]
    return one


def named(section: dict[str, Any], key: str) -> dict[str, Any]:
    return next(point for point in section["points"] if key in point["id"].split())


def test_a_figure_is_its_mean_with_the_range_over_seeds_or_the_interval_of_the_measure(section: dict[str, Any]) -> None:
    seeded = named(section, "s0")
    assert seeded["id"] == "s0 s1" and seeded["seeds"] == (0, 1)
    assert seeded["figures"]["cer"] == [0.025, 0.02, 0.03]
    assert seeded["figures"]["latency_ratio"] == pytest.approx([0.55, 0.45, 0.65])
    assert named(section, "q8")["figures"]["disk_mb"] == [8.612345]
    assert "disk_mb" not in named(section, "bare")["figures"]


def test_every_metric_is_offered_with_its_way_and_ends_of_intervals_are_not(section: dict[str, Any]) -> None:
    metrics = {metric["name"]: metric for metric in section["metrics"]}
    assert next(iter(metrics)) == "cer"
    assert {"kept", "size_ratio", "latency_noisy"} < set(metrics) and "latency_ratio_low" not in metrics
    assert metrics["exact_match"]["better"] == "max" and metrics["kept"]["better"] == "max"
    assert metrics["disk_mb"]["known"] and not metrics["latency_noisy"]["known"]


def test_states_are_those_of_the_section(section: dict[str, Any]) -> None:
    assert [point["id"] for point in section["points"] if point["slower"]] == ["q2", "q4"]
    assert [point["id"] for point in section["points"] if point["noisy"]] == ["q4"]
    assert section["guess"] == 0.08


def test_budgets_are_what_points_differ_in_and_milliseconds_only_of_one_machine(runs: Path) -> None:
    def budgets() -> list[tuple[str, str]]:
        (one,) = content(load(runs), runs, None)["sections"]
        return [(budget["metric"], budget["side"]) for budget in one["budgets"]]

    assert budgets() == [("disk_mb", "max"), ("latency_p50_ms", "max"), ("cer", "max")]
    other = next(one for one in read(runs) if one.key == "q8")
    append(runs / record.FILE, replace(other, key="q8b", hardware={"cpu": "another"}, config={**other.config, "a": 1}))
    assert ("latency_ratio", "max") in budgets()


def exports(runs: Path, **changes: float) -> None:
    """Two models in two engines, one of which writes answers."""
    rows = {"q8": (2.0, 300.0), "q4": (3.0, 500.0)}
    for one in [one for one in read(runs) if one.key in rows]:
        forward, tokens = rows[one.key]
        own = {"logit_gap": 1e-6, "threads": 1.0, "forward_ms": forward}
        made = {f"onnx_{name}": value for name, value in own.items()}
        made |= {f"gguf_{name}": value for name, value in {**own, "tokens_per_s": tokens}.items()}
        ways: Any = {name: "max" if name.endswith("per_s") else "min" for name in made if "threads" not in name}
        values = {**made, **(changes if one.key == "q4" else {})}
        append(runs / record.FILE, replace(one, metrics=values, directions=ways))


def test_the_speed_of_an_engine_is_an_axis_a_column_and_a_budget(runs: Path) -> None:
    exports(runs)
    (one,) = content(load(runs), runs, None)["sections"]
    metrics = {metric["name"]: metric for metric in one["metrics"]}
    forward, tokens = metrics["onnx_forward_ms"], metrics["gguf_tokens_per_s"]
    assert forward["label"] == "onnx forward pass (ms)" and forward["better"] == "min" and forward["main"]
    assert tokens["better"] == "max" and tokens["known"] and tokens["engine"] and not metrics["disk_mb"]["engine"]
    assert not metrics["gguf_forward_ms"]["main"]  # of an engine that answers it is how fast it answers
    assert not metrics["gguf_threads"]["known"]
    budgets = [(budget["metric"], budget["side"]) for budget in one["budgets"]]
    assert budgets[2:4] == [("gguf_tokens_per_s", "min"), ("onnx_forward_ms", "max")]


def test_times_on_other_threads_or_machines_are_no_budget(runs: Path) -> None:
    exports(runs, onnx_threads=2.0)
    (one,) = content(load(runs), runs, None)["sections"]
    assert [budget["metric"] for budget in one["budgets"]][2:] == ["gguf_tokens_per_s", "cer"]
    other = next(one for one in read(runs) if one.key == "q8")
    append(runs / record.FILE, replace(other, key="q8b", hardware={"cpu": "another"}, config={**other.config, "a": 1}))
    (one,) = content(load(runs), runs, None)["sections"]
    assert [budget["metric"] for budget in one["budgets"]] == ["disk_mb", "latency_ratio", "cer"]


def test_a_link_is_relative_to_the_page_quoted_and_only_to_what_is_there(runs: Path, tmp_path: Path) -> None:
    (one,) = content(load(runs), runs, tmp_path / "out")["sections"]
    (there,) = named(one, "q8")["artifacts"]
    assert there["path"] == str(runs / "run/quantize-q8/artifact")
    assert there["href"] == "../it%27s%20runs/run/quantize-q8/artifact/"
    assert named(one, "q4")["artifacts"][0]["href"] is None
    (served,) = content(load(runs), runs, None)["sections"]
    assert named(served, "q8")["artifacts"][0]["href"] is None


def test_an_artifact_cannot_become_a_script(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    other = next(one for one in read(runs) if one.key == "q8")
    append(runs / record.FILE, replace(other, key="js", artifact="javascript:alert(1)", config={"pipeline": {}}))
    (runs / "javascript:alert(1)").mkdir()
    points = [point for one in content(load(runs), runs, runs)["sections"] for point in one["points"]]
    (found,) = [artifact for point in points for artifact in point["artifacts"] if "javascript" in artifact["path"]]
    assert found["href"] == "javascript%3Aalert%281%29/"


def test_the_command_survives_a_shell(shared_runs: Path, sections: list[Section]) -> None:
    command = content(sections, shared_runs, None)["select"]
    assert shlex.split(command) == ["python", "-m", "slimexp.select", str(shared_runs)]


def test_curves_are_of_all_stages_that_led_to_a_point(runs: Path) -> None:
    after = next(one for one in read(runs) if one.key == "q8")
    append(runs / record.FILE, replace(after, key="after", parent="s0"))
    shown = content(load(runs), runs, None)
    (one,) = shown["sections"]
    assert named(one, "after")["curves"] == [{"key": "s0", "stage": "distill", "seed": 0}]
    assert shown["curves"]["s0"]["terms"]["loss"][2:5] == [0.3333, None, 0.2]
    assert len(shown["curves"]) == 1


def test_a_lost_dense_model_is_a_point_without_model_or_run(tmp_path: Path, runs: Path) -> None:
    append(tmp_path / "one.jsonl", next(one for one in read(runs) if one.key == "q8"))
    (one,) = content(load(tmp_path / "one.jsonl"), tmp_path / "one.jsonl", None)["sections"]
    dense = one["points"][0]
    assert dense["dense"] and dense["artifacts"] == [] and dense["overrides"] == ""


def test_growth_and_the_probability_of_being_beaten_are_those_of_the_section(runs: Path) -> None:
    (found,) = load(runs)
    (one,) = content([found], runs, None)["sections"]
    assert one["hypervolumeHistory"] == found.hypervolume_history and len(found.hypervolume_history) == 6
    assert [point["beaten"] for point in one["points"]] == found.probabilities
    (three,) = content(load(runs, z="exact_match"), runs, None)["sections"]
    assert one["decided"] == 0.05 and three["decided"] is None


def test_one_seed_has_the_error_of_its_measure(runs: Path) -> None:
    other = next(one for one in read(runs) if one.key == "q8")
    append(runs / record.FILE, replace(other, metrics={**other.metrics, "cer_stderr": 0.002}))
    (one,) = content(load(runs), runs, None)["sections"]
    assert named(one, "q8")["figures"]["cer"] == pytest.approx([0.016, 0.014, 0.018])
    assert not any("stderr" in metric["name"] for metric in one["metrics"])


def test_differences_from_arms_and_dense_are_told_from_other_figures(runs: Path) -> None:
    other = next(one for one in read(runs) if one.key == "q8")
    figures = {f"cer{end}{of}": 0.001 for end in PAIRED for of in ("", "_low", "_high")}
    append(runs / record.FILE, replace(other, metrics={**other.metrics, **figures}))
    (one,) = content(load(runs), runs, None)["sections"]
    found = {metric["short"]: metric["label"] for metric in one["metrics"] if metric["difference"]}
    rate = "character error rate minus that of the"
    assert found == {
        "cer minus no teacher": f"{rate} same student trained without its teacher",
        "cer minus no training": f"{rate} same student before training",
        "cer minus dense": f"{rate} dense model",
    }


def test_pairs_of_points_are_compared_once(runs: Path) -> None:
    for one in read(runs):
        append(runs / record.FILE, replace(one, metrics={**one.metrics, "cer_stderr": 0.002}))
    (found,) = load(runs)
    (one,) = content([found], runs, None)["sections"]
    points = one["points"]
    for own, point in enumerate(points):
        for other, (difference, low, high, basis) in point["minus"].items():
            assert other < own and basis == "unpaired" and low <= difference <= high
            expected = found.comparisons.compare(own, other, "cer")
            assert expected is not None and low == pytest.approx(expected.low, rel=1e-3)
    assert sum(len(point["minus"]) for point in points) > len(points)


def test_published_points_stand_apart(runs: Path) -> None:
    points = runs.parent / "points.csv"
    points.write_text("label,cer,disk_mb\nOthers 2024,0.001,0.1\n")
    (one,) = content(load(runs, reference=points), runs, None)["sections"]
    assert one["published"] == [{"label": "Others 2024", "figures": {"cer": [0.001], "disk_mb": [0.1]}}]
    assert len(one["points"]) == 7


def test_it_is_strict_json(runs: Path) -> None:
    text = json.dumps(content(load(runs), runs, runs), allow_nan=False)
    assert not any(isinstance(value, float) and math.isnan(value) for value in json.loads(text)["sections"][0].values())


def test_language_models_show_perplexity_and_no_guess(
    tmp_path: Path, make_record: Callable[..., Record], likelihoods: Callable[..., dict[str, float]]
) -> None:
    dense = {**likelihoods(10.0), "disk_mb": 16.0}
    rows = {"dense": dense, "near": {**likelihoods(10.8), "disk_mb": 8.0}}
    about = {"headline": "bits_per_byte", "trivial": 4.5, "baseline": dense}
    for key, metrics in rows.items():
        config = {"pipeline": {key: {}}}
        append(tmp_path / record.FILE, make_record(key, stage=key, metrics=metrics, config=config, **about))
    (one,) = content(load(tmp_path), tmp_path, tmp_path)["sections"]
    assert (one["headline"], one["quality"], one["guessing"]) == ("perplexity", "perplexity_ratio", False)
    assert [metric["name"] for metric in one["metrics"]][:2] == ["perplexity", "perplexity_ratio"]
    assert "kept" not in {metric["name"] for metric in one["metrics"]}
    assert {"metric": "perplexity_ratio", "side": "max"} in one["budgets"]
    assert one["guess"] > 10.8 and "per token" in one["words"][0]
