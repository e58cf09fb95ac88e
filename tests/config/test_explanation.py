"""A user's error is one message with the rule, the value and the way out; a bug is not explained."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.config.explanation import explain

Program = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.usefixtures("conf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+experiment=shrink_tol"], "no experiment is called 'shrink_tol'; did you mean 'shrink_tool'? available: "),
        (["experiment=shrink_tool"], "write +experiment=<option>; options: broken, shrink_tool"),
        (["+experiment=broken"], "conf/experiment/broken.yaml: unknown key 'pipelin'; did you mean 'pipeline'?"),
        (["pipeline=shrnk"], "no pipeline is called 'shrnk'; did you mean 'shrink'?"),
        (["pipeline=shrink", "pipeline.shrnk.steps=1"], "did you mean 'pipeline.shrink.steps'?"),
        (["pipeline=shrink", "sede=1", "model.sise=2"], "did you mean 'model.size'? valid: size, sharp"),
        (["pipeline=shrink", "sede=1", "model.sise=2"], "unknown key 'sede'; did you mean 'seed'?"),
        (["pipeline=null"], "pipeline must be the name of an option, got null; options: "),
        (["pipeline=shrink", "modle=tool"], "did you mean 'model'?"),
        (
            ["pipeline=shrink", "modle@pipeline.x=tool"],
            "there is no config group 'modle': did you mean 'model'? groups: ",
        ),
        (["pipeline=shrink", "model@pipline.shrink.tool=tool"], "did you mean 'model@pipeline.shrink'? options: "),
        (["pipeline=shrink", "+experimnt=shrink_tool"], "unknown key 'experimnt'; did you mean 'experiment'? valid: "),
        (["pipeline=shrink", "seed=x"], "seed must be a whole number, got 'x'"),
        (["pipeline=shrink", "seed=1,2"], "add --multirun"),
        (["pipeline=shrink", "seed=[1"], "cannot read 'seed=[1'"),
        (["pipeline=shrink", "model.size={1:32}"], "model.size must have words for names, got 1"),
        (
            ["pipeline=shrink", 'model.size={"a.*":1,"*":2}'],
            "names in a mapping have no quotes, write 'model.size={a.*:1,*:2}'",
        ),
        (["pipeline=shrink", "model.size=big"], "model.size of counter.Tool must be int, got 'big'"),
        (["-m", "pipeline=shrink", "model.sise=1,2"], "did you mean 'model.size'?"),
    ],
)
def test_user_errors_are_one_message(program: Program, arguments: list[str], message: str) -> None:
    status, output = program(*arguments)
    assert status == 2
    assert message in output
    assert output.count("error: ") == 1
    assert "Traceback" not in output


KEYLESS = ["", " ", "=", "+=", "++=", "~", "~=", "=x", "+=x", "=1,2", "@", "@=", "+@=x", "@x=y", "+"]
NO_FOLDERS = ["/proc/nothing", "/proc/nothing/below", "/proc/self/fd/9999", "/dev/null", "/dev/null/below"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(([word], f"'{word}' names no key: write KEY=VALUE, +KEY=VALUE or ~KEY") for word in KEYLESS),
        *(([f"{group}={empty}"], f"{group.strip('+')} must be the name of an option, got ''; options: ")
          for group in ("pipeline", "model", "+experiment", "hydra/launcher") for empty in ("", "''")),
        (["-cn="], "the config must be the name of an option, got ''; options: config"),
        (["-cn=other"], "no config is called 'other'; available: config"),
        *(([f"runs={folder}"], f"cannot write to {folder.removesuffix('/below')}") for folder in NO_FOLDERS),
        *(([f"runs={folder}", "seed=1,2", "-m"], "cannot write to ") for folder in NO_FOLDERS),
        *(([f"runs={empty}"], "runs must be a folder") for empty in ("", "''")),
        *(([f"name={empty}"], "name must be the name of a folder") for empty in ("", "''")),
        (["-x"], "unrecognized arguments: -x"),
        (["--config-dir"], "expected one argument"),
        (["--config-dir=/proc/nothing"], "Additional config directory '/proc/nothing' not found"),
        (["--cfg=x"], "invalid choice: 'x'"),
        (["--resolve"], "--resolve needs --cfg job"),
    ],
)  # fmt: skip
def test_what_hydra_breaks_at_is_one_line(program: Program, arguments: list[str], message: str) -> None:
    status, output = program("pipeline=shrink", *arguments)
    assert (status, len(output.splitlines())) == (2, 1)
    assert output.startswith(f"error: {message}") or (output.startswith("error: argument --") and message in output)


def test_a_file_that_a_task_lacks_is_not_said_to_be_written(program: Program) -> None:
    with pytest.raises(FileNotFoundError):
        program("pipeline=shrink", task=lambda cfg: Path("/proc/nothing").mkdir())


def test_what_a_task_may_not_read_is_one_line(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise PermissionError(13, "Permission denied", "/text.csv")

    assert program("pipeline=shrink", task=task) == (2, "error: no access to /text.csv (Permission denied)\n")


def test_a_constructor_that_refuses_is_the_users_error(program: Program) -> None:
    status, output = program("pipeline=shrink", "model.size=-1", task=lambda cfg: build(cfg.model))
    assert (status, output) == (2, "error: model: size must be >= 0, got -1\n")


def test_a_malformed_file_is_the_users_error(program: Program, conf: Path) -> None:
    (conf / "model" / "torn.yaml").write_text("{size: [1")
    status, output = program("pipeline=shrink", "model=torn")
    assert status == 2
    assert "torn.yaml" in output


def test_a_full_disk_is_the_users_error(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise OSError(28, "No space left on device")

    status, output = program("pipeline=shrink", task=task)
    assert status == 2
    assert output.startswith(f"error: no space left in {compose().runs}: ") and len(output.splitlines()) == 1


def test_runs_that_is_a_file_is_the_users_error(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        status, output = program("pipeline=shrink", f"runs={folder}")
        assert status == 2
        assert output.startswith(f"error: cannot write to {folder} (a file has that name): ")


def test_errors_of_other_kinds_are_not_explained() -> None:
    assert explain(KeyError("x")) is None
