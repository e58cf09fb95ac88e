"""How points compare: draws against brute force and SciPy's bootstrap, and what stands in where rows are gone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from slimexp.analysis.comparison import Comparison
from slimexp.analysis.section import Section, load, sections
from slimexp.data import rows
from slimexp.data.paired import interval
from slimexp.data.rows import MacroF1, Rows, Scores
from slimexp.record import record
from slimexp.record.record import Record

pytestmark = pytest.mark.fast
Make = Callable[..., Record]
ROWS = 120
LENGTHS = np.random.default_rng(7).integers(20, 80, size=ROWS).astype(float)
HARD = np.random.default_rng(8).gamma(0.5, 0.05, size=ROWS)


def graded(rate: float, chance: int, bottoms: np.ndarray = LENGTHS, *, exponential: bool = False) -> Rows:
    """Results of a model on sentences of which some are hard for all models."""
    noise = np.random.default_rng(chance).normal(0, 0.2, ROWS)
    tops = np.maximum((HARD + rate) * bottoms + noise, 0)
    return Rows(np.arange(ROWS, dtype=np.uint64), tops, bottoms, exponential)


def section_of(make: Make, models: Mapping[str, Rows | list[Rows]], metric: str = "cer", **changes: object) -> Section:
    """A section of models with these results, one for each seed, the first of which is dense."""
    kept: dict[str, Mapping[str, Rows]] = {}
    records = []
    for place, (name, results) in enumerate(models.items()):
        for seed, row in enumerate(results if isinstance(results, list) else [results]):
            metrics = {metric: row.figure, f"{metric}_stderr": 0.01, "disk_mb": 16.0 - place}
            stage, pipeline = ("dense", {}) if not place else ("prune", {"prune": {"x": name}})
            made = make(stage, metrics, pipeline, seed=seed, **changes)
            kept[made.key] = {metric: row}
            records.append(made)
    dense = records[0].metrics
    records = [replace(one, baseline=dense, baseline_key=f"dense-None-{one.seed}-{{}}-None") for one in records]
    (section,) = sections(records, rows=lambda one: kept.get(one.key, {}))
    return section


def test_a_pair_is_told_apart_as_the_paired_bootstrap_of_scipy_tells_it(make: Make) -> None:
    dense, own = graded(0.0, 1), graded(0.01, 2)
    section = section_of(make, {"dense": dense, "own": own})
    place = next(i for i, point in enumerate(section.points) if not point.dense)
    beside = section.comparisons.beside_dense(place, "cer")
    assert (
        beside is not None and beside.basis == "rows" and beside.difference == pytest.approx(own.figure - dense.figure)
    )

    def statistic(at: np.ndarray, axis: int) -> np.ndarray:
        return (own.tops[at].sum(axis) - dense.tops[at].sum(axis)) / LENGTHS[at].sum(axis)

    expected = stats.bootstrap(
        (np.arange(ROWS),), statistic, n_resamples=9999, method="percentile", vectorized=True, random_state=0
    ).confidence_interval
    width = expected.high - expected.low
    assert (beside.low, beside.high) == pytest.approx((expected.low, expected.high), abs=0.05 * width)
    unpaired = math.hypot(*(stats.sem(row.tops / LENGTHS) for row in (own, dense))) * 2 * 1.96
    assert width < unpaired / 3


@pytest.mark.parametrize("kind", ["perplexity", "macro_f1"])
def test_figures_of_draws_are_made_anew_from_their_rows(kind: str) -> None:
    """Not averaged over rows: brute force over each draw agrees."""
    generator = np.random.default_rng(0)
    counts = generator.multinomial(ROWS, [1 / ROWS] * ROWS, size=20).astype(float)
    true, predicted = generator.integers(0, 5, size=(2, ROWS))
    predicted = np.where(generator.random(ROWS) < 0.6, true, predicted)
    nats = graded(2.0, 3, exponential=True)
    labels = MacroF1(nats.questions, predicted.astype(float), true.astype(float))
    for row, found in zip(counts, (nats if kind == "perplexity" else labels).drawn(counts), strict=True):
        at = np.repeat(np.arange(ROWS), row.astype(int))
        if kind == "perplexity":
            expected = math.exp(nats.tops[at].sum() / LENGTHS[at].sum())
        else:
            p, t = predicted[at], true[at]
            classes = sorted(set(p) | set(t))
            hits = [2 * ((p == c) & (t == c)).sum() / ((p == c).sum() + (t == c).sum()) for c in classes]
            expected = sum(hits) / len(classes)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("exponential", [False, True])
def test_influences_are_the_spread_of_the_draws(exponential: bool) -> None:
    generator = np.random.default_rng(0)
    counts = generator.multinomial(ROWS, [1 / ROWS] * ROWS, size=4000).astype(float)
    true = generator.integers(0, 4, ROWS)
    guess = np.where(generator.random(ROWS) < 0.7, true, generator.integers(0, 4, ROWS))
    for result in (
        graded(0.3, 1, exponential=exponential),
        MacroF1(np.arange(ROWS, dtype=np.uint64), guess.astype(float), true.astype(float)),
    ):
        assert math.sqrt((result.influence() ** 2).sum()) == pytest.approx(result.drawn(counts).std(), rel=0.06)


def test_retention_and_ratios_are_drawn_with_the_dense_model(make: Make) -> None:
    dense, own = graded(0.0, 1), graded(0.01, 2)
    section = section_of(make, {"dense": dense, "own": own})
    place = next(i for i, point in enumerate(section.points) if not point.dense)
    counts = np.random.default_rng(1).multinomial(ROWS, [1 / ROWS] * ROWS, size=4000).astype(float)
    kept = (0.077 - own.drawn(counts)) / (0.077 - dense.drawn(counts))
    found = section.comparisons.interval(place, "kept")
    assert found is not None and found.basis == "rows"
    low, high = np.percentile(kept, [2.5, 97.5])
    assert found[:2] == pytest.approx((low, high), abs=0.06 * (high - low))
    beside = section.comparisons.beside_dense(place, "kept")
    assert beside is not None and (beside.low, beside.high) == pytest.approx((found.low - 1, found.high - 1))
    assert beside.worse and beside.not_worse(1.01 - found.low) and not beside.not_worse(0.99 - found.low)


def test_what_paired_rows_show_error_bars_do_not(make: Make) -> None:
    """Dominance on the front follows from the draws; without the rows it is open."""
    models = {"dense": graded(0.0, 1), "large": graded(0.012, 2), "small": graded(0.01, 3)}
    section = section_of(make, models)
    by_label = dict(zip([point.label for point in section.points], section.probabilities, strict=True))
    assert by_label["prune(x=large)"] == pytest.approx(1, abs=0.03) and by_label["prune(x=small)"] == 0
    gone = section_of(make, {name: replace(row, questions=row.questions[::-1]) for name, row in models.items()})
    assert gone.probabilities == section.probabilities  # whatever the order, where it is one
    (section,) = sections(without_rows(make, models))
    doubt = dict(zip([point.label for point in section.points], section.probabilities, strict=True))["prune(x=large)"]
    assert doubt is not None and 0.3 < doubt < 0.9
    first, second = (i for i, point in enumerate(section.points) if not point.dense)
    compared = section.comparisons.compare(first, second, "cer")
    assert compared is not None and compared.basis == "unpaired" and not compared.separable
    assert compared.high - compared.low == pytest.approx(2 * 1.959964 * math.hypot(0.01, 0.01))


def without_rows(make: Make, models: Mapping[str, Rows]) -> list[Record]:
    return [
        make(
            "prune" if place else "dense",
            {"cer": row.figure, "cer_stderr": 0.01, "disk_mb": 16.0 - place},
            {"prune": {"x": name}} if place else {},
        )
        for place, (name, row) in enumerate(models.items())
    ]


def test_models_of_other_rows_are_not_paired(make: Make) -> None:
    other = graded(0.01, 3)
    models = {"dense": graded(0.0, 1), "own": graded(0.01, 2), "other": replace(other, questions=other.questions + 1)}
    section = section_of(make, models)
    labels = [point.label for point in section.points]
    compared = section.comparisons.compare(labels.index("prune(x=own)"), labels.index("prune(x=other)"), "cer")
    assert compared is not None and compared.basis == "unpaired"
    assert section.comparisons.bases("cer") == {"rows": 3} and section.comparisons.bases("disk_mb") == {}


def test_rows_that_make_another_figure_are_not_used(make: Make) -> None:
    row = graded(0.01, 1)
    made = make("prune", {"cer": row.figure * 1.01, "cer_stderr": 0.01, "disk_mb": 4.0}, baseline={})
    (section,) = sections([made], rows=lambda _: {"cer": row})
    assert section.comparisons.bases("cer") == {"unpaired": 1}


def test_right_and_wrong_answers_have_the_score_interval(make: Make) -> None:
    generator = np.random.default_rng(0)
    right = (generator.random((2, ROWS)) < 0.7).astype(float)
    dense, own = (Rows(np.arange(ROWS, dtype=np.uint64), tops, np.ones(ROWS)) for tops in right)
    section = section_of(make, {"dense": dense, "own": own}, "acc", headline="acc", direction="max", trivial=0.1)
    place = next(i for i, point in enumerate(section.points) if not point.dense)
    beside = section.comparisons.beside_dense(place, "acc")
    assert beside is not None and (beside.low, beside.high) == interval(own, dense)


def test_seeds_add_what_rows_do_not_explain(make: Make) -> None:
    dense = graded(0.0, 1)
    apart = [graded(rate, 10 + seed) for seed, rate in enumerate((0.0, 0.01, 0.02))]
    alike = [graded(0.01, 20 + seed) for seed in range(3)]
    section = section_of(make, {"dense": [dense] * 3, "apart": apart, "alike": alike})
    labels = [point.label for point in section.points]
    widths = {}
    for name in ("apart", "alike"):
        beside = section.comparisons.beside_dense(labels.index(f"prune(x={name})"), "cer")
        assert beside is not None and beside.basis == "rows"
        widths[name] = beside.high - beside.low
    spread = np.std([row.figure for row in apart], ddof=1) / math.sqrt(3)
    assert widths["apart"] == pytest.approx(2 * stats.t.ppf(0.975, 2) * spread, rel=0.1)
    assert widths["alike"] < widths["apart"] / 5


def paired(cer: float, disk: float, difference: float, half: float) -> dict[str, float]:
    ends = {"_low": difference - half, "": difference, "_high": difference + half}
    return {"cer": cer, "cer_stderr": 0.01, "disk_mb": disk} | {f"cer_difference{e}": v for e, v in ends.items()}


def test_without_rows_points_are_told_apart_by_their_differences_from_dense(make: Make) -> None:
    """Error bars overlap widely, and row by row the one is worse than the other: it is dominated without a doubt."""
    whole = {"cer": 0.015, "disk_mb": 16.0, "cer_stderr": 0.01}
    dense = make("dense", whole, {})
    good = make("prune", paired(0.02, 4.0, 0.005, 0.002), {"prune": {"x": "good"}}, baseline=whole)
    bad = make("prune", paired(0.03, 5.0, 0.015, 0.002), {"prune": {"x": "bad"}}, baseline=whole)
    (section,) = sections([dense, good, bad])
    labels = [point.label for point in section.points]
    assert section.comparisons.bases("cer") == {"dense": 3}
    assert dict(zip(labels, section.probabilities, strict=True)) == {
        "dense": 0.0, "prune(x=good)": 0.0, "prune(x=bad)": 1.0
    }  # fmt: skip
    beside = section.comparisons.beside_dense(labels.index("prune(x=good)"), "cer")
    assert beside == Comparison(pytest.approx(0.005), 0.003, 0.007, "dense", "min")
    turned = section.comparisons.compare(labels.index("dense"), labels.index("prune(x=good)"), "cer")
    assert turned == Comparison(pytest.approx(-0.005), -0.007, -0.003, "dense", "min")
    pair = section.comparisons.compare(labels.index("prune(x=bad)"), labels.index("prune(x=good)"), "cer")
    assert pair is not None and pair.basis == "dense" and pair.worse
    assert pair.high - pair.low == pytest.approx(2 * math.hypot(0.002, 0.002), rel=0.1)
    unpaired = make("prune", {"cer": 0.03, "cer_stderr": 0.01, "disk_mb": 5.0}, {"prune": {"x": "bad"}})
    (section,) = sections([dense, good, unpaired])
    assert section.comparisons.bases("cer") == {"dense": 2, "unpaired": 1}
    assert 0.6 < max(p for p in section.probabilities if p is not None) < 0.9
    alike = make("prune", paired(0.015, 5.0, 0.0, 0.0), {"prune": {"x": "alike"}}, baseline=whole)
    (section,) = sections([dense, good, alike])  # rows that are alike show no spread
    assert section.comparisons.bases("cer") == {"dense": 2, "unpaired": 1}


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_rows_a_figure_has_its_own_interval_and_not_that_of_its_difference(make: Make, seeds: int) -> None:
    whole = {"cer": 0.015, "disk_mb": 16.0, "cer_stderr": 0.01}
    dense = make("dense", whole, {})
    pruned = [
        make("prune", paired(0.02 + 1e-4 * seed, 4.0, 0.005 + 1e-4 * seed, 0.002), {"prune": {}},
             seed=seed, baseline=whole, baseline_key=dense.key)
        for seed in range(seeds)
    ]  # fmt: skip
    (section,) = sections([dense, *pruned])
    (place,) = (i for i, point in enumerate(section.points) if not point.dense)
    own, beside = section.comparisons.interval(place, "cer"), section.comparisons.beside_dense(place, "cer")
    assert own is not None and beside is not None and own.basis == beside.basis == "dense"
    assert own.high - own.low == pytest.approx(2 * 1.959964 * 0.01, rel=0.01)
    assert beside.high - beside.low == pytest.approx(0.004 + 1e-4 * (seeds - 1))


def test_a_margin_is_not_negative() -> None:
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        Comparison(0.0, 0.0, 0.0, "rows", "min").not_worse(-1)


def test_rows_are_found_beside_the_records_of_any_folder_below(make: Make, tmp_path: Path) -> None:
    models = {"dense": graded(0.0, 1), "own": graded(0.01, 2)}
    for place, (name, row) in enumerate(models.items()):
        folder, file = tmp_path / name, f"scores/{name}/task.npz"
        rows.write(folder / file, Scores({"cer": row.figure}, {"cer": row}), {})
        metrics = {"cer": row.figure, "disk_mb": 16.0 - place}
        stage, pipeline = ("prune", {"prune": {}}) if place else ("dense", {})
        made = make(stage, metrics, pipeline, scores={"task": file})
        record.append(folder / record.FILE, replace(made, config={"measure": {}, **made.config}))
    (section,) = load(tmp_path)
    assert section.comparisons.bases("cer") == {"rows": 2}
    (tmp_path / "own" / "scores" / "own" / "task.npz").write_bytes(b"no archive")
    (section,) = load(tmp_path / "own" / record.FILE)
    assert section.comparisons.bases("cer") == {"unpaired": 2}  # the dense model of the record's baseline has none
