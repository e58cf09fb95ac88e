"""What no search can be done with: told in one line, before any score."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from slimexp.candidate.score import Scorer
from slimexp.candidate.settings import budgets
from tests.candidate.conftest import prepared


def test_a_budget_out_of_reach_names_the_nearest_in_the_units_of_the_config(
    line: list[str], trained: list[Sequence[str]]
) -> None:
    search = prepared(line, "budget.parameters=[24000,100]")
    with pytest.raises(ValueError, match=r"what binds is budget\.parameters=100 .*The nearest: decoder"):
        search.run()
    assert trained == [] and not search.scores.numbers  # it costs no score to know


def test_groups_that_do_not_divide_rows_are_refused_before_anything_is_loaded(line: list[str]) -> None:
    with pytest.raises(ValueError, match=r"q_proj': group_size must divide the length of a row, got 48"):
        prepared(line, "budget.parameters=24000", "pipeline.quantize.group_size=48", "search.hidden=[]")


def test_stages_that_do_not_fit_are_refused_before_any_score(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("a stage does not fit")

    monkeypatch.setattr(Scorer, "realized", refuse)
    search = prepared(line, "budget.parameters=24000")
    with pytest.raises(ValueError, match="a stage does not fit"):
        search.run()
    assert not search.scores.numbers


def test_scores_of_another_model_are_refused(
    line: list[str], trained: list[Sequence[str]], tiny_folder: Callable[..., Path]
) -> None:
    search = prepared(line, "budget.parameters=24000")
    search.scores.add("decoder 0 removed", 1.0)
    other = tiny_folder("causal_lm", name="other", num_hidden_layers=3, intermediate_size=64)
    with pytest.raises(ValueError, match=r"scores\.json' was made of something else: model was .*, is .*another name"):
        prepared(line, f"model.path={other}", "budget.parameters=24000")
    with pytest.raises(ValueError, match="number of rows was 2, is 1"):
        prepared(line, "search.rows=1", "budget.parameters=24000")


def test_whole_scores_of_another_rounding_are_refused(line: list[str]) -> None:
    search = prepared(line, "budget.parameters=24000")
    search.scores.add("decoder 0 removed", 1.0)
    search.wholes.add("decoder 88", 1.0)
    assert prepared(line, "budget.parameters=24000", "pipeline.quantize.bits=4").wholes.numbers
    with pytest.raises(
        ValueError,
        match=r"whole\.json' was made of something else: activation_bits of the stage that rounds was absent, is 8",
    ):
        prepared(line, "budget.parameters=24000", "pipeline.quantize.activation_bits=8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["budget.disk_mb=4", "search.rows=0"], r"search\.rows must be >= 1"),
        (
            ["budget.disk_mb=4", "search.heads=[0]"],
            r"0, for none, is of heads and ffn with search\.uniform=false",
        ),
        (["budget.disk_mb=4", "search.threads=0"], r"search\.threads must be >= 1"),
        (
            ["budget.disk_mb=4", "search.ffn_rank=[8]", "search.uniform=false"],
            r"multiples of pipeline\.quantize\.group_",
        ),
        (
            ["budget.disk_mb=4", "search.ffn_rank=[16]", "pipeline.cut.cut.calibration_batches=0"],
            r"search\.ffn_rank needs a stage with a cut whose calibration_batches is >= 1",
        ),
        (
            ["budget.disk_mb=4", "search.ffn_rank=[16,16]", "search.uniform=false"],
            r"search\.ffn_rank has 16, there twice: leave it out",
        ),
        (
            ["budget.disk_mb=4", "search.ffn_rank=[[16]]"],
            r"search\.ffn_rank must be a list of whole numbers, got \[\[16\]\]",
        ),
        (
            ["budget.disk_mb=4", "search.heads=[{a:0.5}]"],
            r"search\.heads must be a list of numbers, got \[\{'a': 0\.5\}\]",
        ),
        (["budget.disk_mb=4", "search.ffn_rank=[16]"], r"search\.ffn_rank is for search\.uniform=false"),
        (["budget.disk_mb=[4,5,4]"], r"budget\.disk_mb has 4 twice"),
        (["+budget.vram_mb=4"], r"unknown key 'budget\.vram_mb'.* valid: disk_mb, latency_ms, parameters"),
        (["budget.disk_mb=4", "+search.step=3"], r"unknown key 'search\.step'; did you mean 'search\.steps'\?"),
        (["budget.disk_mb=4", "measure=[size]"], "a search needs measure task"),
        (["budget.disk_mb=4", "search.rows=50"], r"search\.rows=50 of the validation split"),
        (["budget.disk_mb=4", "search.share=0"], r"search\.share must be in \(0, 1\]"),
        (["budget.disk_mb=4", "search.promoted=5"], r"search\.promoted=5 of search\.trials=2"),
        (["budget.latency_ms=4"], r"add measure=\[size,task,latency\]"),
        (["budget.latency_ms=4", "measure=[size,task,latency]", "search.pairs=5"], r"search\.pairs must be >= 6"),
        (["budget.disk_mb=4", "pipeline.quantize.group_size=auto"], r"group_size must be a number, or null"),
        (["budget.disk_mb=4", "pipeline.quantize.exclude=[a]"], "leave out its include, exclude and embeddings"),
        (["budget.disk_mb=4", "measure=[task]"], "a search needs measure size"),
        (
            ["budget.disk_mb=4", "search.uniform=false", "search.ffn_rank=[16]", "search.group_size=[32]"],
            r"search\.ffn_rank must have multiples of the 32 of search\.group_size, .* got 16",
        ),
        (
            ["budget.disk_mb=4", "quantizer@pipeline.quantize.quantizer=fp8"],
            r"search\.bits has 4, and pipeline\.quantize\.quantizer cannot: Fp8: bits must be 8, got 4; change search",
        ),
        (["budget.disk_mb=4", "search.group_size=[0]"], r"search\.group_size must be numbers >= 1, got 0"),
        (
            ["budget.disk_mb=4", "search.group_size=[16]"],
            r"search\.group_size has 16, that of pipeline\.quantize, which is a choice anyway: leave it out",
        ),
        (["budget.disk_mb=4", "search.group_size=[8,8]"], r"search\.group_size has 8, there twice: leave it out"),
        (["budget.disk_mb=4", "search.group_size=[8]", "search.bits=[16]"], "is of blocks that are rounded, and none"),
        (
            ["budget.disk_mb=4", "search.group_size=[8,48]"],
            r"search\.group_size must divide the rows .* got 48 for rows of 32 \('model\..*'\): choose divisors of 32",
        ),
        ([], r"no budget: give budget\.disk_mb=NUMBER"),
    ],
)
def test_what_no_search_can_be_done_with_is_one_line(line: list[str], more: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        prepared(line, *more)
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_each_budget_is_a_number_or_a_list() -> None:
    assert budgets(OmegaConf.create({"disk_mb": [4, 8], "latency_ms": 2})) == [
        {"disk_mb": 4.0, "latency_ms": 2.0},
        {"disk_mb": 8.0, "latency_ms": 2.0},
    ]
    with pytest.raises(ValueError, match=r"budget\.latency_ms has 2 numbers and another budget 3"):
        budgets(OmegaConf.create({"disk_mb": [4, 8, 9], "latency_ms": [1, 2]}))
    with pytest.raises(ValueError, match="no budget: give"):
        budgets(OmegaConf.create({"disk_mb": [], "latency_ms": None}))
    for wrong in (0, -1, "four", True, float("nan")):
        with pytest.raises(ValueError, match=r"budget\.disk_mb must be a number > 0"):
            budgets(OmegaConf.create({"disk_mb": wrong}))
