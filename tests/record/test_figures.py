"""Figures that follow from others: retention, ratios to the dense model, sparsity, bits per weight."""

import math
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

import slimexp
from slimexp.record.figures import MEASURES, compared_by, figures, guess_in, leading, retention, unshrunk, untrained
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

Make = Callable[..., Record]


def test_a_figure_that_no_record_has_is_said_to_be_of_the_measure_that_gives_it() -> None:
    for measure, names in MEASURES.items():
        source = (Path(slimexp.__file__).parent / "measure" / f"{measure}.py").read_text()
        patterns = re.findall(r'^ +"([\w*]+)": "m(?:in|ax)"', source, re.MULTILINE) or re.findall(
            r'"([\w*]+)": "m(?:in|ax)"', source
        )
        assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in names), measure


def test_retention_is_corrected_for_the_trivial_guess(make_record: Make) -> None:
    assert retention(make_record(metrics={"cer": 0.015})) == pytest.approx(1)
    assert retention(make_record(metrics={"cer": 0.077})) == pytest.approx(0)
    assert retention(make_record(metrics={"cer": 0.046})) == pytest.approx(0.5)
    accuracy = {"headline": "accuracy", "direction": "max", "baseline": {"accuracy": 0.9}, "trivial": 0.5}
    assert retention(make_record(metrics={"accuracy": 0.8}, **accuracy)) == pytest.approx(0.75)
    assert retention(make_record(metrics={})) is None
    assert retention(make_record(baseline={})) is None
    assert retention(make_record(baseline={"cer": 0.077})) is None
    assert retention(make_record(baseline={"cer": 0.08})) is None
    assert retention(make_record(metrics={"accuracy": 0.8}, **accuracy | {"baseline": {"accuracy": 0.4}})) is None


def test_derived_figures(make_record: Make) -> None:
    metrics = {"cer": 0.046, "cer_stderr": 0.0031, "disk_mb": 4.0, "params_live": 4e6, "params_nonzero": 1e6}
    record = make_record(metrics={**metrics, "weights_mb": 2.0}, baseline={"cer": 0.015, "disk_mb": 16.0})
    found = figures(record)
    assert {name: found[name] for name in found if name not in record.metrics} == pytest.approx(
        {"kept": 0.5, "kept_stderr": 0.05, "size_ratio": 0.25, "sparsity": 0.75, "bits_per_weight": 4.0}
    )


@pytest.mark.parametrize(
    ("sparsity", "size_ratio", "expected"), [(0.5, 1.0, True), (0.5, 0.6, False), (0.0, 1.0, False)]
)
def test_zeros_that_are_stored_make_nothing_smaller(sparsity: float, size_ratio: float, expected: bool) -> None:
    assert unshrunk({"sparsity": sparsity, "size_ratio": size_ratio}) is expected
    assert not unshrunk({"cer": 0.1})


def test_figures_of_layers_and_ratios_to_next_to_nothing_are_none(make_record: Make) -> None:
    record = make_record(metrics={"cer": 0.02, "disk_mb": 1e60, "bits/layer": 4.0}, baseline={"disk_mb": 1e-60})
    assert figures(record) == {"cer": 0.02, "disk_mb": 1e60}


LANGUAGE = {"headline": "bits_per_byte", "trivial": 4.5}


def test_language_models_of_the_same_tokens_are_led_by_perplexity(make_record: Make, likelihoods: Make) -> None:
    row = make_record(metrics=likelihoods(22.0), baseline=likelihoods(11.0), **LANGUAGE)
    found = figures(row)
    assert found["perplexity_ratio"] == pytest.approx(2) and found["perplexity_ratio_stderr"] == pytest.approx(0.02)
    assert found["bits_per_byte_ratio"] == pytest.approx(math.log(22) / math.log(11))
    assert leading("bits_per_byte", [row.metrics, row.baseline, {"disk_mb": 1.0}]) == "perplexity"
    assert compared_by("bits_per_byte", "perplexity") == "perplexity_ratio"
    # the guess in perplexity is that many bits per byte, spread over the same tokens
    assert math.log2(guess_in("perplexity", row) or 0) * 0.3 == pytest.approx(4.5)
    assert guess_in("bits_per_byte", row) == 4.5


def test_language_models_of_other_tokens_are_led_by_bits_per_byte(make_record: Make, likelihoods: Make) -> None:
    row = make_record(metrics=likelihoods(22.0), baseline=likelihoods(11.0, tokens_per_byte=0.4), **LANGUAGE)
    assert "perplexity_ratio" not in figures(row) and "bits_per_byte_ratio" in figures(row)
    assert leading("bits_per_byte", [row.metrics, row.baseline]) == "bits_per_byte"
    assert compared_by("bits_per_byte", "bits_per_byte") == "bits_per_byte_ratio"
    assert leading("bits_per_byte", [row.metrics, {"bits_per_byte": 1.0}]) == "bits_per_byte"
    assert (leading("cer", [{"cer": 0.1}]), compared_by("cer", "cer")) == ("cer", "kept")


@pytest.mark.parametrize("perplexity", [1.0, 0.0, -3.0])
def test_impossible_perplexities_have_no_ratio(perplexity: float, make_record: Make, likelihoods: Make) -> None:
    row = make_record(metrics={"perplexity": perplexity, "bits_per_byte": 1.0}, baseline=likelihoods(11.0), **LANGUAGE)
    assert "perplexity_ratio" not in figures(row) and guess_in("perplexity", row) is None


@pytest.mark.parametrize(("error", "expected"), [(0.0, False), (0.01, False), (0.05, True)])
def test_a_dense_model_within_two_errors_of_the_guess_is_untrained(
    make_record: Make, error: float, expected: bool
) -> None:
    dense = {"macro_f1": 0.4, "macro_f1_stderr": error}
    row = make_record(metrics={"macro_f1": 0.9}, headline="macro_f1", direction="max", baseline=dense, trivial=1 / 3)
    assert untrained(row) is expected and (retention(row) is None) is expected
    assert not untrained(make_record(baseline={}))
