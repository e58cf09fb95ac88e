"""Sections: what is compared with what, seeds put together, labels that tell points apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimexp.analysis.section import Section, better, load, sections
from slimexp.record.record import Record, append

pytestmark = pytest.mark.fast

SPELLING = {"_target_": "slimexp.data.spelling.Spelling", "rate": 0.08}
DENSE = {"cer": 0.015, "disk_mb": 16.0}


def make(
    stage: str,
    metrics: dict[str, float],
    pipeline: dict[str, Any] | None = None,
    *,
    parent: str | None = None,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """A record whose key is its content."""
    pipeline = pipeline if pipeline is not None else {stage: {}}
    fields: dict[str, Any] = {
        "time": "2026-01-01T00:00:00+00:00",
        "name": "run",
        "stage": stage,
        "key": f"{stage}-{parent}-{seed}-{pipeline}-{data}",
        "parent": parent,
        "technique": "dense" if stage == "dense" else stage.title(),
        "seed": seed,
        "overrides": [],
        "config": {
            "data": {**(data or SPELLING), "seed": seed},
            "model": {"_target_": "slimexp.model.loading.Pretrained", "path": "zoo:t5"},
            "pipeline": pipeline,
            "seed": seed,
        },
        "git": None,
        "versions": {},
        "hardware": {},
        "kernel": "float32 matmul",
        "headline": "cer",
        "direction": "min",
        "metrics": metrics,
        "directions": {"decode_tokens_per_s": "max"},
        "baseline": DENSE,
        "baseline_key": f"dense-None-{seed}-{{}}-{data}",
        "trivial": 0.077,
        "seconds": {},
        "reused": False,
        "artifact": "",
        "curves": None,
    }
    return Record(**{**fields, **changes})


def only(records: list[Record], **axes: str) -> Section:
    (section,) = sections(records, **axes)
    return section


def labels(section: Section) -> list[str]:
    return [point.label for point in section.points]


def test_every_stage_of_a_chain_is_a_point_named_by_what_led_to_it() -> None:
    plan = {"prune": {"sparsity": 0.5}, "quantize": {"bits": 4}}
    dense = make("dense", DENSE, {})
    prune = make("prune", {"cer": 0.02, "disk_mb": 16.0}, plan, parent=dense.key)
    quantize = make("quantize", {"cer": 0.03, "disk_mb": 4.0}, plan, parent=prune.key)
    section = only([dense, prune, quantize])
    assert section.title == "spelling"
    assert labels(section) == ["dense", "prune → quantize", "prune"]
    assert [section.points[index].label for index in section.front] == ["dense", "prune → quantize"]


def test_a_chain_whose_first_record_is_lost_is_told_by_its_configuration() -> None:
    plan = {"prune": {}, "quantize": {}, "distill": {}}
    assert "prune → quantize" in labels(only([make("quantize", {"cer": 0.03}, plan, parent="lost")]))


def test_only_the_seed_of_the_run_is_no_setting() -> None:
    def drawn(seed: int, held_out: int, scores: int) -> Record:
        plan = {"prune": {"seed": seed, "importance": {"seed": scores}}}
        data = {**SPELLING, "splits": {"seed": held_out}}
        return make("prune", {"cer": 0.02, "disk_mb": 8.0}, plan, data=data, seed=seed)

    first, other = sections([drawn(0, 0, 0), drawn(1, 0, 0), drawn(0, 0, 1), drawn(0, 1, 0)])
    assert [section.title for section in (first, other)] == ["spelling (splits.seed=0)", "spelling (splits.seed=1)"]
    assert [point.seeds for point in first.points if not point.dense] == [(0, 1), (0,)]


def test_what_is_only_seen_of_a_training_is_no_setting() -> None:
    def trained(seed: int, **trainer: Any) -> Record:
        one = make("prune", {"cer": 0.02, "disk_mb": 8.0}, seed=seed)
        return replace(one, config={**one.config, "trainer": trainer})

    quiet = {"precision": "32-true", "enable_progress_bar": False, "log_every_n_steps": 1}
    section = only([trained(0, precision="32-true"), trained(1, **quiet), trained(2, precision="bf16-mixed")])
    assert [point.seeds for point in section.points if not point.dense] == [(0, 1), (2,)]


def test_labels_hold_what_differs_and_nothing_else() -> None:
    records = [
        make("prune", {"cer": 0.02, "disk_mb": 1.0}, {"prune": {"sparsity": sparsity, "steps": 10}}, key=str(sparsity))
        for sparsity in (0.5, 0.75)
    ]
    nested = [
        make(
            "distill",
            {"cer": 0.02},
            {"distill": {"losses": {"kl": {"temperature": {"start": start}}}}},
            key=f"d{start}",
        )
        for start in (1.0, 5.0)
    ]
    assert labels(only([*records, *nested]))[1:] == [
        "prune(sparsity=0.5)",
        "prune(sparsity=0.75)",
        "distill(temperature.start=1)",
        "distill(temperature.start=5)",
    ]


def test_corpora_and_headlines_are_never_mixed() -> None:
    other = {"_target_": "slimexp.data.spelling.Spelling", "rate": 0.2}
    source = {"_target_": "slimexp.data.python_source.PythonSource"}
    records = [
        make("prune", {"cer": 0.02}),
        make("prune", {"cer": 0.04}, data=other),
        make("prune", {"bits_per_byte": 2.0}, data=source, headline="bits_per_byte", baseline={}, trivial=8.0),
    ]
    found = sections(records)
    assert [section.title for section in found] == ["spelling (rate=0.08)", "spelling (rate=0.2)", "python_source"]
    assert [section.headline for section in found] == ["cer", "cer", "bits_per_byte"]


def test_a_point_that_lacks_an_axis_is_kept_but_on_no_front() -> None:
    section = only([make("prune", {"cer": 0.001}), make("quantize", {"cer": 0.02, "disk_mb": 4.0})])
    assert labels(section) == ["dense", "quantize", "prune"]
    assert section.front == [0, 1]
    assert [section.drawn(index) for index in range(3)] == [True, True, False]


def test_what_is_no_better_than_no_model_is_on_no_front() -> None:
    section = only([make("prune", {"cer": 0.077, "disk_mb": 1.0}), make("quantize", {"cer": 0.07, "disk_mb": 4.0})])
    assert [section.points[index].label for index in section.front] == ["dense", "quantize"]


def test_hypervolume_is_the_share_of_size_and_quality() -> None:
    half = make("quantize", {"cer": 0.015, "disk_mb": 4.0})
    assert only([half]).hypervolume == pytest.approx(0.75)
    assert only([make("prune", {"cer": 0.2, "disk_mb": 1.0})]).hypervolume == 0
    assert only([make("prune", {"wer": 0.2}, baseline={})]).hypervolume is None


def test_hypervolume_grows_as_points_finish() -> None:
    """Whatever their order in the section, which is by size."""
    sizes = {"c": (4.0, 0.0305), "a": (8.0, 0.015), "b": (16.0, 0.01), "d": (2.0, 0.0305), "e": (3.0, 0.1)}
    records = [
        make("prune", {"cer": cer, "disk_mb": disk}, {"prune": {"x": name}}, time=f"2026-01-0{day}T00:00:00+00:00")
        for day, (name, (disk, cer)) in enumerate(sizes.items(), start=1)
    ]
    section = only([*records, make("dense", DENSE, {}, time="2026-02-01T00:00:00+00:00")])
    assert [section.points[index].label for index in section.finished] == [f"prune(x={name})" for name in sizes]
    kept = (0.077 - 0.0305) / (0.077 - 0.015)
    first, second = 0.75 * kept, 0.75 * kept + 0.5 * (1 - kept)
    assert section.hypervolume_history == pytest.approx(
        [first, second, second, second + 0.125 * kept, second + 0.125 * kept]
    )
    assert section.hypervolume_history[-1] == section.hypervolume
    assert only([make("prune", {"wer": 0.2}, baseline={})]).hypervolume_history == []


def test_a_front_of_three() -> None:
    dense = {**DENSE, "latency_ratio": 1.0}
    rows = {"small": (4.0, 0.03, 1.2), "fast": (8.0, 0.03, 0.5), "good": (8.0, 0.02, 0.9), "beaten": (9.0, 0.03, 0.9)}
    records = [
        make("prune", {"cer": cer, "disk_mb": disk, "latency_ratio": ratio}, {"prune": {"x": name}}, baseline=dense)
        for name, (disk, cer, ratio) in rows.items()
    ]

    def front(section: Section) -> list[str]:
        return [section.points[index].label for index in section.front]

    assert front(only(records)) == ["dense", "prune(x=small)", "prune(x=good)"]
    section = only(records, z="latency_ratio")
    assert front(section) == ["dense", "prune(x=small)", "prune(x=fast)", "prune(x=good)"]
    assert section.axes == {"disk_mb": "min", "cer": "min", "latency_ratio": "min"}
    assert section.corner == [16.0, 0.077, 1.0]
    fast, good, both = 0.5 * (1 - 0.03 / 0.077) * 0.5, 0.5 * (1 - 0.02 / 0.077) * 0.1, 0.5 * (1 - 0.03 / 0.077) * 0.1
    assert section.volume == pytest.approx(fast + good - both)
    with pytest.raises(ValueError, match="different metrics, got disk_mb, cer, cer"):
        sections(records, z="cer")
    with pytest.raises(ValueError, match="no record has the metric 'energy'"):
        sections(records, z="energy")


def test_what_rows_and_seeds_leave_open_is_not_separable() -> None:
    dense = {**DENSE, "cer_stderr": 0.002}
    rows = {"a": (4.0, 0.020), "b": (5.0, 0.021), "c": (6.0, 0.060)}
    records = [
        make("prune", {"cer": cer, "disk_mb": disk, "cer_stderr": 0.002}, {"prune": {"x": name}}, baseline=dense)
        for name, (disk, cer) in rows.items()
    ]
    section = only(records)
    assert [section.undecided(index) for index in range(4)] == [True, False, True, False]
    dense_point, a, b, c = section.probabilities
    assert (a, c) == (0, 1)
    assert b == pytest.approx(0.64, abs=0.05)  # P(N(0.001, 0.0028) > 0)
    assert dense_point == pytest.approx(0.05, abs=0.03)  # by a or b, which are better by chance if at all
    assert section.points[1].figures["kept"].error == pytest.approx(0.002 / (0.077 - 0.015))
    assert section.points[0].figures["kept"].error == 0  # by definition


def test_one_seed_without_an_error_is_said_to_be_unknown() -> None:
    section = only([make("prune", {"cer": 0.02, "disk_mb": 8.0})])
    assert section.points[1].figures["cer"].error is None
    assert section.points[1].figures["disk_mb"].error == 0
    assert section.probabilities == [None, None]
    assert not section.undecided(1)


def test_published_points_are_beside_the_front(tmp_path: Path) -> None:
    append(tmp_path / "records.jsonl", make("prune", {"cer": 0.02, "disk_mb": 8.0}))
    (tmp_path / "points.csv").write_text("label,disk_mb,cer\nbest,0.1,0.0001\n")
    (bare,), (section,) = load(tmp_path), load(tmp_path, reference=tmp_path / "points.csv")
    assert [point.label for point in section.published] == ["best"]
    assert replace(section, published=[]) == bare


def test_a_model_trained_from_scratch_is_its_own_dense_model() -> None:
    own = {"cer": 0.02, "disk_mb": 16.0}
    section = only([make("finetune", own, baseline=own, key="own", baseline_key="own")])
    assert labels(section) == ["dense: finetune"]
    assert section.points[0].dense


def test_a_stage_that_loses_nothing_is_not_dense() -> None:
    section = only([make("dense", DENSE, {}), make("prune", DENSE)])
    assert [(point.label, point.dense) for point in section.points] == [("dense", True), ("prune", False)]


def test_a_model_compared_with_nothing_is_not_dense() -> None:
    (point,) = only([make("evaluate", {"cer": 0.02}, baseline={}, baseline_key=None)]).points
    assert not point.dense and "kept" not in point.figures


def test_a_dense_model_known_by_its_figures_alone_is_named_by_its_path() -> None:
    config = {"data": SPELLING, "model": {"path": "runs/pruned"}, "baseline": {"path": "zoo:t5"}}
    section = only([make("evaluate", {"cer": 0.02, "disk_mb": 8.0}, config=config)])
    assert labels(section) == ["dense [model.path=zoo:t5]", "evaluate [model.path=runs/pruned]"]


def test_other_axes() -> None:
    records = [make("prune", {"cer": 0.02, "decode_tokens_per_s": 50.0, "disk_mb": 3.0})]
    section = only(records, x="decode_tokens_per_s", y="kept")
    assert section.directions == ("max", "max")
    assert section.trivial is None
    with pytest.raises(ValueError, match="latency_p50_ms"):
        sections(records, x="latency_p50_ms")


def test_directions_are_those_of_the_records() -> None:
    ways = {"arc_exact_match": "max", "lambada_perplexity": "min"}
    records = [make("dense", DENSE), make("prune", {"cer": 0.02, "arc_exact_match": 0.5}, directions=ways)]
    assert only(records, x="arc_exact_match").directions == ("max", "min")
    assert better("lambada_perplexity", records) == better("size_ratio", records) == "min"


def test_headlines_of_other_rows_are_not_compared() -> None:
    def graded(rows: float, cer: float) -> Record:
        dense = {**DENSE, "task_examples": rows}
        one = make("prune", {"cer": cer, "disk_mb": 8.0, "task_examples": rows}, key=f"prune-{rows}", baseline=dense)
        return replace(one, baseline_key="dense")

    few, many = sections([graded(8, 0.01), graded(811, 0.02)])
    assert [section.title for section in (few, many)] == ["spelling on 8 rows", "spelling on 811 rows"]
    assert [len(section.points) for section in (few, many)] == [2, 2]  # each with its own dense model
