"""Overrides of a benchmark's runs may stand anywhere in its command line."""

import argparse
import sys

import pytest

from benchmarks import command

pytestmark = pytest.mark.fast


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--seeds", type=int, nargs="+")
    made.add_argument("--most", nargs="*")
    made.add_argument("--cached", action="append")
    return made


def test_an_option_of_several_values_leaves_them(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "+experiment=x --seeds 0 1 a.b=2 --most 8=0.2 4=0.1 ~stage model=m --cached +cache@a.b=exact c=[1,2]"
    monkeypatch.setattr(sys, "argv", ["benchmark", *line.split()])
    found = command.parsed(parser, takers=["--cached"])
    assert (found.seeds, found.most, found.cached) == ([0, 1], ["8=0.2", "4=0.1"], ["+cache@a.b=exact"])
    assert found.overrides == ["+experiment=x", "a.b=2", "~stage", "model=m", "c=[1,2]"]


def test_a_command_may_have_no_words(parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    found = command.parsed(parser)
    assert (found.seeds, found.overrides) == (None, [])


def test_a_wrong_option_is_told(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--seed", "3", "--sede", "1"])
    with pytest.raises(SystemExit):
        command.parsed(parser)
    assert "--sede" in capsys.readouterr().err


def test_runs_are_where_the_benchmark_looks_for_them(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    parser.add_argument("--runs")
    with pytest.raises(SystemExit):
        command.parsed(parser, ["trainer=gpu", "runs=elsewhere"])
    assert "give --runs elsewhere" in capsys.readouterr().err
