"""Overrides of candidates, and the trainings that they are."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp.candidate import trial
from slimexp.candidate.choice import Candidate, Choices, Place, choices
from slimexp.candidate.precision import FLOAT, Precision
from slimexp.candidate.score import Scorer
from slimexp.candidate.trial import Stages, overrides
from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.sweeper.worker import Job, Outcome

EXPERIMENT = "+experiment=search_llama"
GIVEN = {"remove": True, "heads": [0.5], "ffn": [0.5], "hidden": [0.5], "bits": [FLOAT, 8, 4], "multiple": 16,
         "uniform": True}  # fmt: skip
MIXED = Candidate(
    heads=1, ffn=32, hidden=32, bits={Place("decoder", 0): 4, Place("decoder", 1): FLOAT, Place("decoder", 3): 8}
)
UNLIKE = MIXED.keeping("ffn", dict(zip(MIXED.bits, (16, 64, 32), strict=True)))
UNLIKE_HEADS = UNLIKE.keeping("heads", dict(zip(MIXED.bits, (2, 1, 2), strict=True)))
WHOLE = Candidate(heads=2, ffn=64, hidden=32, bits={Place("decoder", index): FLOAT for index in range(4)})

GROUPED = MIXED.rounded({**MIXED.precisions, Place("decoder", 0): Precision(4, 8), Place("decoder", 2): Precision(4)})


@pytest.fixture
def family(tiny: Callable[..., Any]) -> Any:
    return tiny("causal_lm", num_hidden_layers=4, intermediate_size=64, initializer_range=0.3)


@pytest.fixture
def options(family: Any) -> Choices:
    return choices(family.model.config, **GIVEN)


def test_a_candidate_is_a_command_line(family: Any, options: Choices) -> None:
    stages = Stages.of(compose([EXPERIMENT]).pipeline)
    words = overrides(MIXED, options, stages, family)
    cfg = compose([EXPERIMENT, *words])
    check(cfg)
    assert cfg.pipeline.cut.cut.decoder_layers == [0, 1, 3]
    assert (cfg.pipeline.cut.cut.heads, cfg.pipeline.cut.cut.ffn) == (1, 32)
    assert cfg.pipeline.quantize.allocation.bits == {"model.layers.0.*": 4, "model.layers.2.*": 8}
    assert cfg.pipeline.quantize.exclude == ["model.layers.1.*"]


def test_group_sizes_are_a_setting_by_layer(family: Any, options: Choices) -> None:
    lines, more = [EXPERIMENT, "pipeline.quantize.group_size=16"], replace(options, group_sizes=[16, 8])
    stages = Stages.of(compose(lines).pipeline)
    cfg = compose([*lines, *overrides(GROUPED, more, stages, family)])
    check(cfg)
    sizes = {"model.layers.0.*": 8, "model.layers.2.*": 16, "model.layers.3.*": 16}
    assert cfg.pipeline.quantize.group_size == sizes
    alike = MIXED.rounded({place: Precision(bits, 8 * (bits < FLOAT)) for place, bits in MIXED.bits.items()})
    assert compose([*lines, *overrides(alike, more, stages, family)]).pipeline.quantize.group_size == 8
    assert not [word for word in overrides(MIXED, more, stages, family) if "group_size" in word]
    null = replace(options, group_sizes=[None, 8])
    cfg = compose([*lines, *overrides(GROUPED, null, stages, family)])
    assert cfg.pipeline.quantize.group_size == {**dict.fromkeys(sizes), "model.layers.0.*": 8}


@pytest.mark.parametrize(("candidate", "heads"), [(UNLIKE, 1), (UNLIKE_HEADS, {"decoder": [2, 1, 2]})])
def test_unlike_widths_are_given_for_the_blocks_that_stay(
    family: Any, options: Choices, candidate: Candidate, heads: Any
) -> None:
    stages = Stages.of(compose([EXPERIMENT]).pipeline)
    cfg = compose([EXPERIMENT, *overrides(candidate, options, stages, family)])
    check(cfg)
    assert (cfg.pipeline.cut.cut.decoder_layers, cfg.pipeline.cut.cut.ffn) == ([0, 1, 3], {"decoder": [16, 64, 32]})
    assert cfg.pipeline.cut.cut.heads == heads
    build(cfg.pipeline.cut).validate(family.model.config, before=[])


def test_maps_are_given_as_ranks_beside_zeros(family: Any) -> None:
    given = GIVEN | {"hidden": [], "uniform": False}
    options = choices(family.model.config, **given, attention_rank=[16], ffn_rank=[16])
    stages = Stages.of(compose([EXPERIMENT]).pipeline)
    heads = dict(zip(MIXED.bits, (2, -16, 1), strict=True))
    candidate = replace(MIXED, hidden=None).keeping("heads", heads).keeping("ffn", dict.fromkeys(MIXED.bits, -16))
    words = overrides(candidate, options, stages, family)
    assert "pipeline.cut.cut.attention_rank={decoder:[0,16,0]}" in words
    cfg = compose([EXPERIMENT, *words])
    check(cfg)
    kept = cfg.pipeline.cut.cut
    assert (kept.heads, kept.ffn) == ({"decoder": [2, 0, 1]}, {"decoder": [0, 0, 0]})
    assert (kept.attention_rank, kept.ffn_rank) == ({"decoder": [0, 16, 0]}, {"decoder": [16, 16, 16]})
    build(cfg.pipeline.cut).validate(family.model.config, before=[])


def test_stages_without_effect_are_left_out(family: Any, options: Choices) -> None:
    stages = Stages.of(compose([EXPERIMENT]).pipeline)
    cfg = compose([EXPERIMENT, *overrides(WHOLE, options, stages, family)])
    assert list(cfg.pipeline) == ["distill"]
    rounded = Candidate(heads=2, ffn=64, hidden=32, bits={Place("decoder", index): 4 for index in range(4)})
    cfg = compose([EXPERIMENT, *overrides(rounded, options, stages, family)])
    assert list(cfg.pipeline) == ["quantize", "distill"]
    assert (cfg.pipeline.quantize.bits, cfg.pipeline.quantize.allocation) == (4, None)


@pytest.mark.parametrize("candidate", [MIXED, UNLIKE, GROUPED], ids=str)
def test_the_pipeline_makes_what_was_scored(
    family: Any, options: Choices, corpus: Callable[..., Any], candidate: Candidate
) -> None:
    lines = [EXPERIMENT, "pipeline.quantize.group_size=16"]
    stages = Stages.of(compose(lines).pipeline)
    text, whole = corpus("causal_lm"), compose(lines).pipeline
    scorer = Scorer(family, text, text.splits["train"][:2], cut=whole.cut.cut, quantize=whole.quantize, seed=0)
    scored = scorer.realized(candidate)
    options = replace(options, group_sizes=[16, 8])
    pipeline = compose([*lines, *overrides(candidate, options, stages, family)]).pipeline
    cut, quantize = build(pipeline.cut), build(pipeline.quantize)
    cut.prepare(family, text, None)
    quantize.prepare(cut.family, text, None)
    quantize.finish()
    batch = family.encode([("one", None, None), ("three and four", None, None)])
    with torch.no_grad():
        assert torch.equal(scored.forward(batch)[0], quantize.family.forward(batch)[0])


@pytest.mark.parametrize(
    "wrong", ["pipeline.quantize.steps=2", "~pipeline.distill", "+technique@pipeline.more=prune", "pipeline=distill"]
)
def test_another_pipeline_is_refused(wrong: str) -> None:
    line = [wrong, "model=llama_python_source"] if wrong.startswith("pipeline=") else [EXPERIMENT, wrong]
    with pytest.raises(ValueError, match="the pipeline of a search is"):
        Stages.of(compose(line).pipeline)


@pytest.mark.fast
def test_what_a_training_does_not_know_is_left_out() -> None:
    arguments = [EXPERIMENT, "budget.disk_mb=4", "search.rows=2", "hydra/sweeper/pool@search.pool=ray", "seed=1"]
    assert trial.base(arguments) == [EXPERIMENT, "seed=1"]


class Pool:
    """Runs a job when its result is asked for; the second one fails."""

    free = 1

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    @property
    def busy(self) -> int:
        return len(self.jobs)

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.free = 0

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        self.free = 1
        job = self.jobs.pop()
        good = job.number != 1
        yield job, Outcome(({"cer": float(job.number)},) if good else (), None if good else "no memory", 1.0)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.fast
def test_a_training_that_fails_ends_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = trial.run(Pool(), {0: ["a"], 1: ["b"], 2: ["c"]}, tmp_path, "short")  # type: ignore[arg-type]
    assert found == {0: {"cer": 0.0}, 2: {"cer": 2.0}}
    assert "FAILED short 1: no memory" in capsys.readouterr().out
