"""What cannot be pruned, or would change nothing, is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from slimexp.data.base import Corpus
from slimexp.model.causal_lm import CausalLm
from slimexp.model.layer import LayerSelector
from slimexp.model.tokenizer import Bytes

Make = Callable[..., Any]
SENSITIVITY = "+allocation@pipeline.prune.allocation=sensitivity"
NM = "pattern@pipeline.prune.pattern=n_m"


def by(importance: str) -> str:
    return f"importance@pipeline.prune.importance={importance}"


@pytest.mark.parametrize("what", ["include", "exclude"])
def test_a_pattern_of_names_that_matches_nothing_lists_those_that_exist(
    words: Corpus, family: Make, prune: Make, what: str
) -> None:
    message = rf"{what}: no layer is called '\*\.mlp'; there are encoder\.block\.0\.layer\.0\.SelfAttention\.q, "
    with pytest.raises(ValueError, match=message):
        prune(**{what: "['*.mlp']"}).prepare(family(), words, None)


def test_no_layer_left(words: Corpus, family: Make, prune: Make) -> None:
    with pytest.raises(ValueError, match="include and exclude leave no layer of encoder"):
        prune(exclude="['*']").prepare(family(), words, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"pattern.scope": "column"}, "scope must be one of layer, global, row, got 'column'"),
        ({"schedule.end": 0.5}, "schedule must end at 1"),
        ({"every": 0}, "every must be >= 1 step, got 0"),
        ({"ramp": 0}, r"ramp must be in \(0, 1\], got 0"),
        ({"regrow": 1.0}, r"regrow must be in \[0, 1\), got 1.0"),
        ({"regrow": 0.3}, "regrow needs training between updates: set steps"),
    ],
)
def test_wrong_values_are_refused_by_the_constructor(prune: Make, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**settings)


def test_n_m_refuses_a_target_between_and_rows_that_do_not_divide(words: Corpus, family: Make, prune: Make) -> None:
    with pytest.raises(ValueError, match=r"the nearest is 0\.5 \(2:4\)"):
        prune(NM, sparsity=0.6)
    with pytest.raises(ValueError, match=r"layer 'encoder\..*': m must divide .* got 5 for rows of 32"):
        prune(NM, sparsity=0.4, **{"pattern.m": 5}).prepare(family(), words, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pipeline.prune.pattern.scope=global"], "allocation needs layers that do not compete"),
        ([NM], "allocation needs a pattern that takes any sparsity, NM does not"),
        (["pipeline.prune.sparsity=0.95"], "sparsity 0.95 is more than the last of allocation.sparsities, 0.9"),
        (["pipeline.prune.allocation.rows=0"], "rows of training text to scan with must be >= 1, got 0"),
        (["pipeline.prune.allocation.sparsities=[0.5,0.3]"], r"sparsities must ascend within \(0, 1\), got"),
    ],
    ids=str,
)
def test_allocations_that_cannot_be_are_refused(prune: Make, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(SENSITIVITY, *overrides)


def test_an_allocation_of_bits_is_refused(prune: Make) -> None:
    with pytest.raises(ValueError, match=r"allocation must be sensitivity or null .*, got MixedPrecision"):
        prune("+allocation@pipeline.prune.allocation=mixed_precision")


def test_an_allocation_needs_scores_before_training(prune: Make) -> None:
    with pytest.raises(ValueError, match="allocation scans before Movement has scores"):
        prune(SENSITIVITY, by("movement"), steps=2)


def test_gates_do_not_regrow(prune: Make) -> None:
    with pytest.raises(ValueError, match="gates of L0 open and shut by themselves: set regrow=0"):
        prune(by("l0"), steps=2, regrow=0.3)


def test_taylor_without_a_loss(prune: Make) -> None:
    with pytest.raises(
        ValueError, match=r"Taylor needs .* a loss: add one, e\.g\. \+loss@pipeline\.<stage>\.losses\.ce=cross_entropy$"
    ):
        prune(by("taylor"), "~pipeline.prune.losses.ce")


@pytest.mark.parametrize("reading", [by("taylor"), SENSITIVITY])
def test_what_reads_the_objective_has_one_whose_teacher_is_there(prune: Make, reading: str) -> None:
    with pytest.raises(ValueError, match=r"needs .*a loss: add one, e\.g\. "):
        prune(reading, "~pipeline.prune.losses.ce")
    taught = ["+loss@pipeline.prune.losses.kl=kl", "+teacher_cache@pipeline.prune.cache=exact"]
    with pytest.raises(
        ValueError, match=r"on rows of its own, .*: leave out the cache \(pipeline\.<stage>\.cache=null"
    ):
        prune(reading, *taught, steps=2)
    assert prune(reading, *taught, steps=0).cache is not None  # the teacher itself is there
    assert prune(*taught, steps=2).cache is not None


def test_sparsegpt_where_layers_compete(prune: Make) -> None:
    with pytest.raises(ValueError, match=r"SparseGPT makes up for zeros within a layer.*: set pattern\.scope=layer"):
        prune(by("sparsegpt"), **{"pattern.scope": "global"})


def test_no_linear_layer_names_what_was_looked_for_and_found() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(ValueError, match=r"looked for Linear in the blocks of GPT2LMHeadModel, found .*Conv1D \(4\)"):
        LayerSelector(include=["*"], exclude=[], min_coverage=0.01, min_block_coverage=0.01).layers(
            CausalLm(gpt2, Bytes().build([]), max_length=16)
        )


def test_too_little_coverage(words: Corpus, family: Make, prune: Make) -> None:
    with pytest.raises(ValueError, match=r"compressible layers hold \d+\.\d% .* min_coverage is 99\.0%"):
        prune(min_coverage=0.99).prepare(family(), words, None)


def test_a_target_that_is_reached_already_changes_nothing(words: Corpus, family: Make, prune: Make) -> None:
    technique = prune(sparsity=0.5)
    technique.prepare(family(), words, None)
    technique.finish()
    with pytest.raises(ValueError, match=r"sparsity 40.0% would change nothing, the model has 50.0% zeros already"):
        prune(sparsity=0.4).prepare(technique.family, words, None)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("magnitude", r"Magnitude gave scores of layer '.*' that are not finite"),
        ("sparsegpt", r"layer '.*\.q': its weight holds NaN or infinity"),
    ],
)
def test_scores_that_are_not_finite(words: Corpus, family: Make, prune: Make, importance: str, message: str) -> None:
    technique = prune(by(importance), sparsity=0.5)
    model = family()
    nn.init.constant_(next(iter(model.compressible().values())).weight, float("nan"))
    technique.prepare(model, words, None)
    with pytest.raises(ValueError, match=message):
        technique.finish()
