"""A search over the experts of a mixture and their bits, beside what it chooses of any model."""

import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.candidate import cost
from slimexp.candidate.choice import EXPERT_BITS, Candidate, Change, Choices, Place, choices
from slimexp.candidate.precision import FLOAT
from slimexp.candidate.score import Added, Scorer
from slimexp.candidate.solve import Program
from slimexp.candidate.trial import Stages, overrides
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.cut.remove import remove
from tests.cut.test_expert_use import MIXTURES

EXPERIMENT = ["+experiment=search_moe", "model.path=MODEL", "pipeline.quantize.group_size=8"]
QWEN = {"model_type": "qwen3_moe", **MIXTURES["qwen3_moe"], "num_experts": 8, "initializer_range": 0.3}
DEEPSEEK = {
    "model_type": "deepseek_v3", **MIXTURES["deepseek_v3"], "moe_intermediate_size": 16, "initializer_range": 0.3
}  # fmt: skip
FEW = {"remove": True, "uniform": True, "heads": [], "ffn": [], "hidden": [], "bits": [FLOAT, 8], "multiple": 8}
EXPERTS = {"experts": [0.5], "expert_bits": [FLOAT, 4]}
FIRST, SECOND = Place("decoder", 0), Place("decoder", 1)


def scorer(family: Any, corpus: Any) -> Scorer:
    cfg, text = compose(EXPERIMENT), corpus("causal_lm")
    return Scorer(
        family, text, text.splits["train"][:4], cut=cfg.pipeline.cut.cut, quantize=cfg.pipeline.quantize, seed=0
    )


def options(family: Any, **changed: Any) -> Choices:
    return choices(family.model.config, **FEW | EXPERTS | changed)


def test_choices_of_a_mixture_are_its_experts_and_their_bits(tiny: Callable[..., Any]) -> None:
    found = options(tiny("causal_lm", **QWEN), expert_bits=[8, FLOAT, 4])
    assert found.widths["experts"] == [8, 4] and found.widths[EXPERT_BITS] == [FLOAT, 8, 4]
    assert {Change(FIRST, "experts", 4), Change(SECOND, EXPERT_BITS, 4)} <= set(found.changes())
    assert EXPERT_BITS not in options(tiny("causal_lm")).widths, "it has none"
    assert EXPERT_BITS not in options(tiny("causal_lm", **QWEN), bits=[FLOAT]).widths, "nothing is rounded"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"experts": [0.5, 0.1]},
            r"search\.experts=0\.1 would keep 1 of 8 experts, .* num_experts_per_tok=2.*: raise",
        ),
        ({"experts": [1.5]}, r"search\.experts must be shares in \(0, 1\]"),
        ({"expert_bits": [1]}, r"search\.expert_bits must be within 2 to 8, or 16 for floats, got \[1\]"),
    ],
)
def test_fewer_experts_than_the_router_picks_are_refused(
    tiny: Callable[..., Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        options(tiny("causal_lm", **QWEN), **changed)


def test_single_changes_cost_what_whole_models_do(tiny: Callable[..., Any], corpus: Callable[..., Any]) -> None:
    """In the one block that is a mixture."""
    work = scorer(tiny("causal_lm", **DEEPSEEK), corpus)
    before = {name: tensor.clone() for name, tensor in work.family.model.state_dict().items()}
    bits = dict.fromkeys((FIRST, SECOND), FLOAT)
    fewer = work.alone(Change(SECOND, "experts", 4))
    assert fewer > 0 and work.alone(Change(FIRST, "experts", 4)) == pytest.approx(0, abs=1e-6)
    whole = Candidate.of({"heads": 4, "ffn": 48, "hidden": 32, "experts": 4, EXPERT_BITS: FLOAT}, bits)
    assert work.whole(whole) == pytest.approx(fewer, rel=1e-2)
    costs = [work.alone(Change(SECOND, EXPERT_BITS, width)) for width in (8, 4, 2)]
    assert 0 <= costs[0] < costs[1] < costs[2]
    assert work.alone(Change(FIRST, EXPERT_BITS, 2)) == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in work.family.model.state_dict().items())


@pytest.mark.parametrize("shape", [QWEN, DEEPSEEK], ids=["qwen3_moe", "deepseek_v3"])
def test_costs_are_those_of_the_artifact(
    tiny: Callable[..., Any], corpus: Callable[..., Any], tmp_path: Path, shape: dict[str, Any]
) -> None:
    """Blocks are unlike in DeepSeek: the first holds no experts."""
    work = scorer(tiny("causal_lm", **shape), corpus)
    found, quantize = options(work.family), compose(EXPERIMENT).pipeline.quantize
    probe = cost.probes(found)[-1]

    def written(candidate: Candidate) -> float:
        artifact.save(work.realized(candidate), tmp_path / "a", dtype=torch.bfloat16, stages=[])
        return cost.artifact_mb(tmp_path / "a")

    megabytes = written(probe)
    disk = cost.disk(work.family, found, quantize=quantize, dtype=torch.bfloat16, probe=probe, probe_mb=megabytes)
    program, counts = Program(found, Added({})), cost.parameters(work.family, found)
    whole = {name: sizes[0] for name, sizes in found.widths.items()}
    for widths, bits in (
        ({"experts": 4, EXPERT_BITS: 4}, {FIRST: 8, SECOND: 8}),
        ({EXPERT_BITS: FLOAT}, {FIRST: 8, SECOND: 8}),
        ({"experts": 4, EXPERT_BITS: 4}, {SECOND: 8}),
        ({EXPERT_BITS: 4}, {FIRST: 8, SECOND: FLOAT}),
    ):
        candidate = Candidate.of({**whole, **widths}, bits)
        assert program.cost(candidate, disk) == pytest.approx(written(candidate), abs=0.006), candidate
        small = remove(work.family, candidate.layers(found.stacks), work.retained(candidate)).model
        assert program.cost(candidate, counts) == pytest.approx(sum(p.numel() for p in small.parameters()), abs=0.5)


def test_no_model_is_measured_twice(tiny: Callable[..., Any]) -> None:
    """Experts of a model of floats are floats, whatever their bits."""
    found = cost.probes(options(tiny("causal_lm", **QWEN), expert_bits=[FLOAT, 8, 4]))
    made = [(probe.bits, probe.widths | {EXPERT_BITS: FLOAT} if FLOAT in probe.bits.values() else probe.widths)
            for probe in found]  # fmt: skip
    assert all(one not in made[:number] for number, one in enumerate(made))
    assert {probe.expert_bits for probe in found if FLOAT not in probe.bits.values()} == {FLOAT, 8, 4}


def test_the_program_of_a_deep_mixture_takes_megabytes() -> None:
    """As a dense matrix its constraints would be more than 100, and over a gigabyte at 48 blocks."""
    sizes = {"heads": [4, 2], "ffn": [4, 3, 2], "hidden": [4, 3], "experts": [4, 3, 2], EXPERT_BITS: [16, 8, 4, 3]}
    widths = [dict(zip(sizes, some, strict=True)) for some in product(*sizes.values())]
    places = frozenset(Place("decoder", index) for index in range(14))
    tracemalloc.start()
    try:
        Program(Choices({"decoder": 14}, places, sizes, widths, [16, 8, 4, 3], False, False), Added({}))
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_a_candidate_is_a_command_line(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm", **QWEN)
    found = options(family)
    whole = {name: sizes[0] for name, sizes in found.widths.items()}
    stages = Stages.of(compose(EXPERIMENT).pipeline)

    def composed(widths: dict[str, int], bits: dict[Place, int]) -> Any:
        cfg = compose([*EXPERIMENT, *overrides(Candidate.of({**whole, **widths}, bits), found, stages, family)])
        check(cfg)
        return cfg.pipeline

    pipeline = composed({"experts": 4, EXPERT_BITS: 4}, {FIRST: 8, SECOND: FLOAT})
    assert pipeline.cut.cut.experts == 4
    assert pipeline.quantize.allocation.bits == {"*.experts.*": 4, "model.layers.0.*": 8}
    assert pipeline.quantize.exclude == ["model.layers.1.*"]
    pipeline = composed({EXPERT_BITS: FLOAT}, {FIRST: 8, SECOND: 8})
    assert "cut" not in pipeline and pipeline.quantize.exclude == ["*.experts.*"]
    assert pipeline.quantize.allocation is None and pipeline.quantize.bits == 8
    assert "quantize" not in composed({EXPERT_BITS: 4}, {FIRST: FLOAT, SECOND: FLOAT}), "experts are of their blocks"
