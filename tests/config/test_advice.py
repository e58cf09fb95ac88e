"""Command lines that are wrong in ways people type them, on conf/ itself: one message, whose advice can be followed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from slimexp.config.check import check
from slimexp.config.composition import compose, options
from slimexp.config.schema import Evaluation, Run

Program = Callable[..., tuple[int, str]]

MODELS = f"options: {', '.join(options('model'))}"
DISTILL = ["+experiment=distill_t5"]
EVALUATE = ["model=t5_spelling", "data=spelling"]
COMPLETION = "--shell-completion needs install=bash, fish or zsh (or uninstall=...)"
CUT_OUT = ["pipeline=distill", "data=spelling", "model=cut_out"]


@pytest.fixture
def message(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What ``train`` or ``evaluate`` says of a command line that is the user's error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; so it is put back

    def of(*arguments: str, command: str = "train") -> str:
        schema, config_name = (Run, "config") if command == "train" else (Evaluation, "evaluate")
        status, said = program(*arguments, task=partial(check, schema=schema), config_name=config_name)
        assert status == 2 and said.startswith("error: ")
        return said.removeprefix("error: ").removesuffix("\n")

    return of


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [*DISTILL, "pipeline.distill.teacher=pretrained"],
            "pipeline.distill.teacher must be a component, got 'pretrained': "
            f"write +model@pipeline.distill.teacher=pretrained; {MODELS}",
        ),
        (
            [*CUT_OUT, "model.source=t5_spelling"],
            "model.source must be a component, got 't5_spelling': "
            f"write model@model.source=t5_spelling; {MODELS}",
        ),
        (
            [*DISTILL, "baseline=t5_spelling"],
            f"baseline must be a component, got 't5_spelling': write model@baseline=t5_spelling; {MODELS}",
        ),
        (
            [*DISTILL, "+baseline.path=folder"],
            "baseline must be a component, got {'path': 'folder'}: "
            f"write model@baseline=<option>; {MODELS}",
        ),
        (
            [*DISTILL, "pipeline.distill.lr_scheduler=constant"],
            "pipeline.distill.lr_scheduler must be a component, got 'constant': write "
            "lr_scheduler@pipeline.distill.lr_scheduler=constant; options: constant, cosine, linear",
        ),
        (
            [*DISTILL, "pipeline.distill.optimizer=3"],
            "pipeline.distill.optimizer must be a component, got 3: write "
            "optimizer@pipeline.distill.optimizer=<option>; options: adamw",
        ),
        (["--shell-completion"], COMPLETION),
        (["--shell-completion", "install=foo"], COMPLETION),
        (["--shell-completion", "install=bash", "uninstall=bash"], COMPLETION),
        (["--shell-completion", "query=bash"], COMPLETION),
        (["--cfg", "job", "-m"], "--multirun and --cfg cannot be combined: leave one of them out"),
    ],
)  # fmt: skip
def test_train(message: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert message(*arguments) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [*EVALUATE, "baseline=t5_spelling"],
            f"baseline must be a component, got 't5_spelling': write model@baseline=t5_spelling; {MODELS}",
        ),
        (
            [*EVALUATE, "baseline=[1]"],
            f"baseline must be a component, got [1]: write model@baseline=<option>; {MODELS}",
        ),
        (["--shell-completion"], COMPLETION),
        (["--shell-completion", "query=fish"], COMPLETION),
    ],
)
def test_evaluate(
    message: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert message(*arguments, command="evaluate") == said


@pytest.mark.parametrize(
    "followed",
    [
        [*DISTILL, "+model@pipeline.distill.teacher=t5_spelling"],
        [*CUT_OUT, "model@model.source=t5_spelling"],
        [*DISTILL, "model@baseline=t5_spelling"],
        [*DISTILL, "lr_scheduler@pipeline.distill.lr_scheduler=constant"],
    ],
)
def test_advice_can_be_followed(followed: list[str]) -> None:
    check(compose(followed))


def test_a_completion_that_a_shell_asks_for_is_given(program: Program) -> None:
    assert program("--shell-completion", "install=bash") == (0, "")
