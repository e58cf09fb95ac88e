"""Sections: what is compared with what, seeds put together, labels that tell points apart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slimexp.analysis.section import Section, better, load, sections
from slimexp.record.record import Record, append

pytestmark = pytest.mark.fast

SPELLING = {"_target_": "slimexp.data.spelling.Spelling", "rate": 0.08}
DENSE = {"cer": 0.015, "disk_mb": 16.0}


def only(records: list[Record], **axes: str) -> Section:
    (section,) = sections(records, **axes)
    return section


def labels(section: Section) -> list[str]:
    return [point.label for point in section.points]


def test_every_stage_of_a_chain_is_a_point_named_by_what_led_to_it(make: Callable[..., Record]) -> None:
    plan = {"prune": {"sparsity": 0.5}, "quantize": {"bits": 4}}
    dense = make("dense", DENSE, {})
    prune = make("prune", {"cer": 0.02, "disk_mb": 16.0}, plan, parent=dense.key)
    quantize = make("quantize", {"cer": 0.03, "disk_mb": 4.0}, plan, parent=prune.key)
    section = only([dense, prune, quantize])
    assert section.title == "spelling"
    assert labels(section) == ["dense", "prune → quantize", "prune"]
    assert [section.points[index].label for index in section.front] == ["dense", "prune → quantize"]


def test_only_the_seed_of_the_run_is_no_setting(make: Callable[..., Record]) -> None:
    def drawn(seed: int, held_out: int, scores: int) -> Record:
        plan = {"prune": {"seed": seed, "importance": {"seed": scores}}}
        data = {**SPELLING, "splits": {"seed": held_out}}
        return make("prune", {"cer": 0.02, "disk_mb": 8.0}, plan, data=data, seed=seed)

    first, other = sections([drawn(0, 0, 0), drawn(1, 0, 0), drawn(0, 0, 1), drawn(0, 1, 0)])
    assert [section.title for section in (first, other)] == ["spelling (splits.seed=0)", "spelling (splits.seed=1)"]
    assert [point.seeds for point in first.points if not point.dense] == [(0, 1), (0,)]


def test_a_point_that_lacks_an_axis_is_kept_but_on_no_front(make: Callable[..., Record]) -> None:
    section = only([make("prune", {"cer": 0.001}), make("quantize", {"cer": 0.02, "disk_mb": 4.0})])
    assert labels(section) == ["dense", "quantize", "prune"]
    assert section.front == [0, 1]
    assert [section.drawn(index) for index in range(3)] == [True, True, False]


def test_what_rows_and_seeds_leave_open_is_not_separable(make: Callable[..., Record]) -> None:
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


def test_the_error_of_one_seed_without_its_own_is_unknown(make: Callable[..., Record]) -> None:
    section = only([make("prune", {"cer": 0.02, "disk_mb": 8.0})])
    assert section.points[1].figures["cer"].error is None
    assert section.points[1].figures["disk_mb"].error == 0
    assert section.probabilities == [None, None]
    assert not section.undecided(1)


def test_published_points_are_beside_the_front(make: Callable[..., Record], tmp_path: Path) -> None:
    append(tmp_path / "records.jsonl", make("prune", {"cer": 0.02, "disk_mb": 8.0}))
    (tmp_path / "points.csv").write_text("label,disk_mb,cer\nbest,0.1,0.0001\n")
    (bare,), (section,) = load(tmp_path), load(tmp_path, reference=tmp_path / "points.csv")
    assert [point.label for point in section.published] == ["best"]
    assert replace(section, published=[]) == bare


def test_a_model_trained_from_scratch_is_its_own_dense_model(make: Callable[..., Record]) -> None:
    own = {"cer": 0.02, "disk_mb": 16.0}
    section = only([make("finetune", own, baseline=own, key="own", baseline_key="own")])
    assert labels(section) == ["dense: finetune"]
    assert section.points[0].dense


def test_a_stage_that_loses_nothing_is_not_dense(make: Callable[..., Record]) -> None:
    section = only([make("dense", DENSE, {}), make("prune", DENSE)])
    assert [(point.label, point.dense) for point in section.points] == [("dense", True), ("prune", False)]


def test_a_model_compared_with_nothing_is_not_dense(make: Callable[..., Record]) -> None:
    (point,) = only([make("evaluate", {"cer": 0.02}, baseline={}, baseline_key=None)]).points
    assert not point.dense and "kept" not in point.figures


def test_other_axes(make: Callable[..., Record]) -> None:
    records = [make("prune", {"cer": 0.02, "decode_tokens_per_s": 50.0, "disk_mb": 3.0})]
    section = only(records, x="decode_tokens_per_s", y="kept")
    assert section.directions == ("max", "max")
    assert section.trivial is None
    with pytest.raises(ValueError, match="latency_p50_ms"):
        sections(records, x="latency_p50_ms")


def test_directions_are_those_of_the_records(make: Callable[..., Record]) -> None:
    ways = {"arc_exact_match": "max", "lambada_perplexity": "min"}
    records = [make("dense", DENSE), make("prune", {"cer": 0.02, "arc_exact_match": 0.5}, directions=ways)]
    assert only(records, x="arc_exact_match").directions == ("max", "min")
    assert better("lambada_perplexity", records) == better("size_ratio", records) == "min"


def test_language_models_are_led_by_perplexity_where_their_tokens_are_the_same(
    make: Callable[..., Record], likelihoods: Callable[..., dict[str, float]]
) -> None:
    dense = {**likelihoods(10.0), "disk_mb": 16.0}
    small = {**likelihoods(12.0), "disk_mb": 4.0}
    other = {**likelihoods(9.0, tokens_per_byte=0.5), "disk_mb": 3.0}
    about = {"headline": "bits_per_byte", "baseline": dense, "trivial": 4.5}
    rows = [make("dense", dense, {}, **about), make("prune", small, **about)]
    (one,) = sections(rows)
    assert (one.headline, one.y, one.quality, one.direction) == ("perplexity", "perplexity", "perplexity_ratio", "min")
    assert one.trivial is None and one.guess is not None and one.guess > 1e4
    assert [point.label for point in one.points] == ["dense", "prune"] and one.front == [0, 1]
    assert one.hypervolume == pytest.approx(0.75 / 1.2)  # a quarter of the bytes, 10 / 12 of the quality
    (mixed,) = sections([*rows, make("cut", other, **about)])
    assert (mixed.headline, mixed.quality) == ("bits_per_byte", "bits_per_byte_ratio")
    (three,) = sections(rows, z="perplexity_ratio")
    assert list(three.volume_axes) == ["disk_mb", "bits_per_byte", "perplexity_ratio"]
    assert three.corner is not None and three.corner[1] == 4.5
