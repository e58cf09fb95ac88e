"""Composed costs against the artifacts and models themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.candidate import cost
from slimexp.candidate.choice import Candidate, Place, choices
from slimexp.candidate.precision import FLOAT, Precision
from slimexp.candidate.score import Added, Scorer
from slimexp.candidate.solve import Program
from slimexp.config.composition import compose
from slimexp.cut.remove import remove

PIPELINE = ["+technique@pipeline.cut=distill", "+cut@pipeline.cut.cut=keep", "+technique@pipeline.quantize=quantize",
            "pipeline.cut.cut.calibration_batches=1", "pipeline.quantize.group_size=16",
            "pipeline.quantize.activation_bits=null"]  # fmt: skip
SHAPE = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128}
GIVEN = {"remove": True, "heads": [0.5], "ffn": [0.5], "hidden": [0.5], "bits": [FLOAT, 8, 4], "multiple": 16,
         "uniform": False}  # fmt: skip
RANKED = GIVEN | {"hidden": [], "attention_rank": [16], "ffn_rank": [16, 32]}
FREE = Added({})  # no losses
CANDIDATES = [
    Candidate(heads=2, ffn=128, hidden=64, bits={Place("decoder", i): FLOAT for i in range(4)}),
    Candidate(heads=1, ffn=64, hidden=64, bits={Place("decoder", 0): 8, Place("decoder", 3): 4}),
    Candidate(
        heads=2, ffn=64, hidden=32, bits={Place("decoder", 0): 4, Place("decoder", 1): FLOAT, Place("decoder", 3): 4}
    ),
    Candidate(heads=2, ffn=64, hidden=64, bits={Place("decoder", 0): 4, Place("decoder", 2): FLOAT}).keeping(
        "ffn", {Place("decoder", 0): 128, Place("decoder", 2): 64}
    ),
    Candidate(heads=2, ffn=64, hidden=32, bits={Place("decoder", 1): 8, Place("decoder", 3): FLOAT}).keeping(
        "heads", {Place("decoder", 1): 1, Place("decoder", 3): 2}
    ),
]

GROUPS = [16, 8, 32]  # the first is of the stage
GROUPED = [
    Candidate.of({"heads": 2, "ffn": 128, "hidden": 64}, {}).rounded(
        {
            Place("decoder", 0): Precision(8, 32),
            Place("decoder", 1): Precision(FLOAT),
            Place("decoder", 3): Precision(4),
        }
    ),
    Candidate.of({"heads": 1, "ffn": 64, "hidden": 32}, {}).rounded(
        {Place("decoder", 0): Precision(4, 8), Place("decoder", 2): Precision(4, 8)}
    ),
]


MAPPED = [
    Candidate(heads=2, ffn=-16, hidden=64, bits={Place("decoder", 0): 8, Place("decoder", 3): FLOAT}).keeping(
        "heads", {Place("decoder", 0): -16, Place("decoder", 3): 2}
    ),
    Candidate(heads=-16, ffn=128, hidden=64, bits={Place("decoder", 1): 4, Place("decoder", 2): 4}).keeping(
        "ffn", {Place("decoder", 1): -32, Place("decoder", 2): 128}
    ),
]


@pytest.fixture
def scorer(tiny: Callable[..., Any], corpus: Callable[..., Any]) -> Scorer:
    text, cfg = corpus("causal_lm"), compose(PIPELINE)
    family = tiny("causal_lm", **SHAPE)
    return Scorer(
        family, text, text.splits["train"][:2], cut=cfg.pipeline.cut.cut, quantize=cfg.pipeline.quantize, seed=0,
        ranks={"heads": 16, "ffn": 32},
    )  # fmt: skip


def written(scorer: Scorer, candidate: Candidate, folder: Path) -> float:
    artifact.save(scorer.realized(candidate), folder, dtype=torch.bfloat16, stages=[])
    return cost.artifact_mb(folder)


@pytest.mark.parametrize(
    ("given", "candidates"),
    [(GIVEN, CANDIDATES), (RANKED, MAPPED), (GIVEN | {"multiple": 32, "group_sizes": GROUPS}, GROUPED)],
    ids=["units", "maps", "groups"],
)
def test_bytes_are_those_of_the_artifact(scorer: Scorer, tmp_path: Path, given: Any, candidates: Any) -> None:
    options = choices(scorer.family.model.config, **given)
    probe = cost.probes(options)[-1]
    assert not probe.group_sizes
    table = cost.disk(
        scorer.family,
        options,
        quantize=compose(PIPELINE).pipeline.quantize,
        dtype=torch.bfloat16,
        probe=probe,
        probe_mb=written(scorer, probe, tmp_path / "probe"),
    )
    program = Program(options, FREE)
    for number, candidate in enumerate(candidates):
        real = written(scorer, candidate, tmp_path / str(number))
        assert program.cost(candidate, table) == pytest.approx(real, abs=0.003), (
            candidate
        )  # of the config, in kilobytes


@pytest.mark.parametrize(("given", "candidates"), [(GIVEN, CANDIDATES), (RANKED, MAPPED)], ids=["units", "maps"])
def test_parameters_are_counted_exactly(scorer: Scorer, given: Any, candidates: Any) -> None:
    options = choices(scorer.family.model.config, **given)
    table, program = cost.parameters(scorer.family, options), Program(options, FREE)
    for candidate in candidates:
        layers, maps = candidate.layers(options.stacks), scorer.maps(candidate)
        small = remove(scorer.family, layers, scorer.retained(candidate), maps=maps)
        count = sum(parameter.numel() for parameter in small.model.parameters())
        assert program.cost(candidate, table) == pytest.approx(count, abs=0.5)


def test_latency_is_composed_of_models_that_were_measured(scorer: Scorer) -> None:
    """Times that do add up are found again, for candidates that were not among the measured ones."""
    options = choices(scorer.family.model.config, **GIVEN, group_sizes=GROUPS)

    def true(candidate: Candidate) -> float:
        saved, widths = 0.1 * (candidate.hidden == 32), {place: candidate.widths_at(place) for place in candidate.bits}
        narrow = {place: 0.2 * (own["heads"] == 1) + 0.3 * (own["ffn"] == 64) for place, own in widths.items()}
        return 2.0 + sum(
            {FLOAT: 1.0, 8: 0.8, 4: 0.9}[bits]
            + candidate.group_sizes.get(place, 16) / 100
            - (saved + narrow[place]) * bits / 16
            for place, bits in candidate.bits.items()
        )

    measured = {probe: true(probe) for probe in cost.probes(options)}
    table, program = cost.latency(options, measured), Program(options, FREE)
    for candidate in [*CANDIDATES, *GROUPED]:
        assert candidate not in cost.probes(options) or candidate is CANDIDATES[0]
        assert program.cost(candidate, table) == pytest.approx(true(candidate), rel=1e-6)


@pytest.mark.parametrize("depths", [{}, {"num_layers": 4, "num_decoder_layers": 1}], ids=str)
def test_a_decoder_of_a_probe_is_no_deeper_than_its_encoder(tiny: Callable[..., Any], depths: dict[str, int]) -> None:
    options = choices(tiny("seq2seq", **depths).model.config, **GIVEN)
    for probe in cost.probes(options):
        layers = probe.layers(options.stacks)
        assert 0 < len(layers["decoder"]) <= len(layers["encoder"])


def test_one_model_is_measured_for_each_rank(scorer: Scorer) -> None:
    options = choices(scorer.family.model.config, **RANKED | {"bits": [FLOAT]})
    probes = cost.probes(options)
    assert [str(probe) for probe in probes if "~" in str(probe)] == [
        "decoder ffff, heads 0~16, ffn 128, hidden 64",
        "decoder ffff, heads 2, ffn 0~16, hidden 64",
        "decoder ffff, heads 2, ffn 0~32, hidden 64",
    ]
    table = cost.latency(options, {probe: 2.0 + len(str(probe)) for probe in probes})
    for probe in probes:
        assert Program(options, FREE).cost(probe, table) == pytest.approx(2.0 + len(str(probe)), rel=0.2)
