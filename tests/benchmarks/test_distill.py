"""Benchmarks of distillation: speeds by a run's log, differences in a table, a divergence against float64."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import distill_loss, distill_peers, distill_smollm2, on_policy
from benchmarks.distill_peers import OURS, Speed
from slimexp.record.schema import MINUS_ARM

LOG = """distill_no_teacher: training 200 steps of 4 rows
  step 20 of 200, loss 2.1, 10 s, about 90 s left
  step 200 of 200, loss 1.1, 2 min
distill: training 200 steps of 4 rows
  distill: preparing: took 17 s
  step 10 of 200, loss 2.1, 20 s, about 90 s left
  step 20 of 200, loss 2.0, 30 s, about 90 s left
  step 100 of 200, loss 1.5, 1 min 10 s, about 40 s left
  step 200 of 200, loss 1.1, 2 min
distill: measuring size, task
"""


@pytest.mark.fast
def test_speed_is_that_of_the_student_after_the_first_tenth() -> None:
    assert distill_smollm2.tokens_per_s(LOG, 1000) == pytest.approx(1000 * 180 / 90)
    assert distill_smollm2.tokens_per_s("distill: finished before, reused from runs\n", 1000) is None


@pytest.fixture
def rows(make_record: Callable[..., Any]) -> list[Any]:
    """Students of three seeds, the last of which is not surely better than without its teacher."""
    made = []
    for seed, high in enumerate((-0.01, -0.02, 0.01)):
        metrics = {"bits_per_byte": 1.5, "params_live": 51.0}
        for end in MINUS_ARM.values():
            metrics |= {
                f"bits_per_byte{end}": -0.05,
                f"bits_per_byte{end}_low": -0.09,
                f"bits_per_byte{end}_high": high,
            }
        baseline = {"bits_per_byte": 1.2, "params_live": 100.0}
        made.append(make_record(seed=seed, headline="bits_per_byte", metrics=metrics, baseline=baseline))
    return made


@pytest.mark.fast
def test_every_seed_must_be_better_than_without_its_teacher(rows: list[Any]) -> None:
    arguments = argparse.Namespace(least_speed=100.0, least_gain=2.0)
    sizes = [
        distill_smollm2.Size("half", rows, [120.0], 150.0),
        distill_smollm2.Size("quarter", rows[:2], [90.0], None),
    ]
    assert distill_smollm2.missed(sizes, arguments) == [
        "half: no better than without its teacher at seeds [2]",
        "half: 1.25x cached, of at least 2x",
        "quarter: 90 tokens/s, of at least 100",
    ]
    lines = distill_smollm2.table(sizes).splitlines()
    assert "| half | 0 | 51.0% | 1.5000 | 1.2000 | -0.0500 [-0.0900, -0.0100] |" in lines[2]
    assert lines[5].startswith("| half, mean |") and "-0.0500 [-0.0500, -0.0500]" in lines[5]


def test_a_divergence_is_held_against_float64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--toy"])
    distill_loss.main()
    said = capsys.readouterr().out
    assert "| slimexp | " in said and "| torch | " in said

    case = distill_loss.Case.random(8, 4, 20, torch.device("cpu"), torch.float32)
    loss = distill_loss.chosen("kl", ["temperature.start=1.0"])
    right = distill_loss.ours(case, loss, 40, compiled=False)
    assert max(distill_loss.errors(case, right, loss)) < distill_loss.OFF
    assert max(distill_loss.errors(case, lambda *states: 1.1 * right(*states), loss)) > 0.09


@pytest.mark.fast
def test_a_peer_that_is_as_fast_or_as_lean_is_named() -> None:
    arguments = argparse.Namespace(over_gkd=3.0, memory=0.5, over_best=1.2)
    peers = {"TRL, GKDTrainer": Speed(10.0, 80.0, 4, [2.0, 1.5]), "DistillKit, online": Speed(20.0, 90.0, 2, [])}
    assert distill_peers.missed({OURS: Speed(30.0, 40.0, 1, []), **peers}, arguments) == []
    assert distill_peers.missed({OURS: Speed(22.0, 44.0, 1, []), **peers}, arguments) == [
        "2.20x GKDTrainer, of at least 3x",
        "0.55x its memory, of at most 0.5x",
        "1.10x the best peer, of at least 1.2x",
    ]
    lines = distill_peers.table({OURS: Speed(30.0, 40.0, 1, []), **peers}).splitlines()
    assert lines[3] == "| TRL, GKDTrainer | 10 | 0.33 | 80.0 | 2.00 | 4 | 2.0000 to 1.5000 |"


@pytest.mark.parametrize("student", on_policy.STUDENTS)
def test_both_ways_to_write_take_turns_and_agree(student: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"target missed: .* < 1e\+09"):
        on_policy.main(["--toy", "--student", student, "--target", "1e9"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [
        "  batch 0, generate", "  batch 0, decode loop", "  batch 1, generate", "  batch 1, decode loop",
    ]  # fmt: skip
    assert lines[-1].startswith(f"{student} student: ") and lines[-1].endswith("100.0% of greedy tokens the same")
