"""Validation chooses a temperature or a loss, the test split says how far it is from another, seed by seed."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import distill_losses, temperature
from benchmarks.temperature import ANNEALED, FIXED, Arm, Result, best, line, outcome, table, verdict, worse
from slimexp.config.check import check
from slimexp.config.composition import compose

Make = Callable[..., Any]
LOW, HIGH, FALLS = (Arm(name, kind, ()) for name, kind in (("low", FIXED), ("high", FIXED), ("falls", ANNEALED)))


@pytest.fixture
def result(make_record: Make) -> Callable[..., Result]:
    """Headlines on validation and on test -> the records of an arm."""

    def make(validation: Sequence[float], test: Sequence[float], direction: str = "min") -> Result:
        splits = [
            [
                make_record(seed=seed, headline="cer", direction=direction, metrics={"cer": value}, trivial=0.1)
                for seed, value in enumerate(values)
            ]
            for values in (validation, test)
        ]
        return Result(*splits)

    return make


@pytest.mark.fast
def test_validation_chooses_though_another_is_better_on_the_test_split(result: Callable[..., Result]) -> None:
    of = {LOW: result([0.2, 0.3], [0.3, 0.3]), HIGH: result([0.3, 0.4], [0.1, 0.1]), FALLS: result([0.1], [0.1])}
    assert best(of, FIXED) == LOW and best(of, ANNEALED) == FALLS
    of = {arm: result(*map(lambda rows: [one.metrics["cer"] for one in rows], of[arm]), "max") for arm in of}
    assert best(of, FIXED) == HIGH


@pytest.mark.fast
def test_differences_are_paired_and_worse_is_positive(result: Callable[..., Result]) -> None:
    reference, other = result([0, 0, 0], [0.1, 0.5, 0.9]), result([0, 0, 0], [0.2, 0.6, 1.0])
    difference = worse(other, reference)
    assert difference.mean == pytest.approx(0.1) and difference.low == pytest.approx(0.1)  # seeds differ, pairs do not
    assert worse(result([0], [0.2], "max"), result([0], [0.1], "max")).mean == pytest.approx(-0.1)


@pytest.mark.fast
def test_tables_and_verdicts_say_what_was_chosen(result: Callable[..., Result]) -> None:
    of = {LOW: result([0.2, 0.2], [0.20, 0.30]), HIGH: result([0.3, 0.3], [0.3, 0.4]),
          FALLS: result([0.1, 0.1], [0.10, 0.2001])}  # fmt: skip
    lines = table(of, LOW, [LOW, FALLS]).splitlines()
    assert lines[2].startswith("| **low** | 0.2000 ± 0.0000 | 0.2500 ± 0.0707 |  |  | 2 |")
    assert lines[3].startswith("| high |") and "+0.1000" in lines[3]
    assert verdict(of, FALLS, LOW).endswith("2 paired seeds: better")
    assert verdict(of, HIGH, LOW).endswith("2 paired seeds: worse")
    near = {LOW: of[LOW], FALLS: result([0.1, 0.1], [0.1, 0.4])}
    assert verdict(near, FALLS, LOW).endswith("not told apart")
    kept = outcome(of, LOW, [LOW, FALLS], ["a=1"])
    assert kept["reference"] == "low" and kept["chosen"] == ["low", "falls"]
    assert [row["test"] for row in kept["arms"]][1] == [0.3, 0.4]


ARMS = [(temperature, arm) for arm in temperature.arms("distill", "kl", [1.0, 8.0], [5.0, 1.0])]
ARMS += [(distill_losses, arm) for arm in distill_losses.arms("distill", "kl")]


@pytest.mark.parametrize(("module", "arm"), ARMS, ids=lambda value: getattr(value, "name", ""))
def test_an_arm_is_a_run(module: Any, arm: Arm) -> None:
    experiment = "distill_t5_tenth" if module is distill_losses else "distill_t5"
    arguments = argparse.Namespace(experiment=experiment, runs=Path("runs"), name="arms", overrides=["trainer=fast"])
    cfg = compose(line(arm, 3, "validation", arguments))
    check(cfg)
    assert cfg.seed == 3 and cfg.measure.task.split == "validation"
    losses = cfg.pipeline.distill.losses
    if arm.name.startswith("T = 5 to 1, cosine"):
        assert losses.kl.temperature._target_.endswith("Cosine") and losses.kl.temperature.end == 1
    if arm.name == "T = 8":
        assert (losses.kl.temperature.start, losses.kl.temperature.end) == (8, 8)
    if arm.name == "jsd, beta 0.9":
        assert losses.kl._target_.endswith("GeneralizedJsd") and losses.kl.beta == 0.9
