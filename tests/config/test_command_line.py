"""A program ends as it should: status and output of errors, bugs, interrupts, multiruns and help."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from slimexp.config.check import check
from slimexp.config.command_line import main

Program = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.usefixtures("conf")


def test_a_traceback_can_be_asked_for(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMEXP_TRACEBACK", "1")
    status, output = program("model.size=big")
    assert status == 2
    assert "Traceback" in output


def test_a_bug_keeps_its_traceback(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise ValueError("not meant for the user")

    with pytest.raises(ValueError, match="not meant"):
        program("pipeline=shrink", task=task)


def test_interrupt(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    status, output = program("pipeline=shrink", task=task)
    assert status == 130
    assert len(output.splitlines()) == 1


def test_in_a_multirun_one_job_fails_and_the_others_go_on(program: Program) -> None:
    done = []

    def task(cfg: DictConfig) -> None:
        check(cfg)
        done.append(cfg.model.size)

    status, output = program("-m", "pipeline=shrink", "model.size=1,big,3", task=task)
    assert status == 2
    assert done == [1, 3]
    assert output.count("must be int, got 'big'") == 1
    assert "Traceback" not in output


def test_in_a_multirun_a_bug_is_shown_once(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        assert cfg.model.size != 2

    status, output = program("-m", "pipeline=shrink", "model.size=1,2,3", task=task)
    assert status == 1
    assert output.count("Traceback") == 1


def test_leaves_nothing_beside_runs(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program("pipeline=shrink")
    program("-m", "pipeline=shrink", "seed=1,2")
    assert list(tmp_path.iterdir()) == []


def test_help_names_groups_and_options(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    main_module = sys.modules[__name__]
    assert main_module.__doc__ is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", "--help"])
        main(lambda cfg: None)
    output = capsys.readouterr().out
    assert main_module.__doc__ in output
    assert re.search(r"experiment +broken, shrink_tool", output)
