"""Errors in a config are said before anything is loaded, with the nearest right word; programs end as they should."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from slimexp.config import composition
from slimexp.config.build import ConfigError, build
from slimexp.config.check import check
from slimexp.config.command_line import explain, main
from slimexp.config.composition import compose
from slimexp.config.schema import Run

SHOP = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:  # these tests need no torch
    from slimexp.technique.finetune import Finetune
else:
    Finetune = object

class Shrink(Finetune):
    def __init__(self, *, steps: int, rate: float = 0.1, tool=None): ...

class Tool:
    def __init__(self, *, size: int, sharp: bool, name: str | None = None):
        if size < 0:
            raise ValueError(f"size must be >= 0, got {size}")
        self.size, self.given = size, name

class Whatever:
    def __init__(self, **anything): ...
"""
FILES = {
    "config": """
        defaults: [schema, model: tool, data: null, pipeline: null, _self_, override hydra/job_logging: none,
                   override hydra/hydra_logging: none]
        seed: 0
        runs: {runs}
        name: run
        save_dtype: bfloat16
        resume: true
        compile: false
        checkpoint: {{every_steps: 1, every_seconds: 1}}
        trainer: null
        data: null
        hydra: {{run: {{dir: "${{runs}}"}}, sweep: {{dir: "${{runs}}", subdir: .}}, output_subdir: null}}
        """,
    "model/tool": "{_target_: counter.Tool, size: 1, sharp: true}",
    "model/unnamed": "{_target_: counter.Tool, size: '???', sharp: true}",
    "technique/shrink": "{_target_: counter.Shrink, steps: 3}",
    "pipeline/shrink": "{defaults: [/technique@shrink: shrink]}",
    "experiment/shrink_tool": "# @package _global_\n{defaults: [override /pipeline: shrink], name: shrink_tool}",
    "hydra/sweeper/pareto": "{_target_: counter.Tool, workers: 2}",
    "experiment/broken": "# @package _global_\n{pipelin: 1}",
}


@pytest.fixture(scope="module", autouse=True)
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small conf folder with components of its own, so that these tests stand while conf/ changes."""
    folder = tmp_path_factory.mktemp("conf")
    runs = tmp_path_factory.mktemp("work") / "runs"  # not a group beside the others
    for name, text in FILES.items():
        path = (folder / name).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(runs=runs) if name == "config" else text)
    (folder / "counter.py").write_text(SHOP)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(composition, "CONF_DIR", folder)
        patch.setenv("SLIMEXP_PACKAGES", "counter")
        patch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; so it is put back
        yield folder


def faults(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(compose(["+experiment=shrink_tool", *overrides]))
    return str(caught.value)


def test_a_right_config_passes() -> None:
    check(compose(["+experiment=shrink_tool"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+pipeline.shrink.stepz=1"],
            "'pipeline.shrink.stepz' of counter.Shrink; did you mean 'pipeline.shrink.steps'",
        ),
        (["+pipeline.shrink.stepz=1"], "valid: steps, rate, tool"),
        (["~pipeline.shrink.steps"], "pipeline.shrink lacks 'steps', which counter.Shrink requires"),
        (["model=unnamed"], "model.size has no value: add model.size=<int> to the command line"),
        (["seed=???"], "seed has no value"),
        (["pipeline.shrink._target_=counter.Shrnk"], "did you mean 'counter.Shrink'"),
        (["model._target_=no_such_package.Tool"], "pip install no-such-package"),
        (["+pipelin=1"], "unknown key 'pipelin'; did you mean 'pipeline'"),
        (["+pipeline.shrnk.steps=1"], "pipeline.shrnk is not a technique"),
        (["+pipeline.shrnk.steps=1"], "did you mean 'pipeline.shrink'"),
        (["+pipeline.other.{_target_: counter.Tool, size: 1, sharp: true}".replace(".{", "={")], "not a technique"),
        (["~pipeline.shrink"], "pipeline is empty"),
        (["name=${nme}"], "name: Interpolation key 'nme' not found"),
        (["pipeline.shrink.steps=${steps}"], "pipeline.shrink.steps: Interpolation key 'steps' not found"),
        (["pipeline.shrink.steps=many"], "pipeline.shrink.steps of counter.Shrink must be int, got 'many'"),
        (["model.sharp=1"], "model.sharp of counter.Tool must be bool, got 1"),
        (["model.size=true"], "must be int, got True"),
        (["+pipeline.shrink.tool={_target_: counter.Tool, size: 1}"], "pipeline.shrink.tool lacks 'sharp'"),
        (["+pipeline.shrink.tool=[{_target_: counter.Tool, size: 1}]"], "pipeline.shrink.tool[0] lacks 'sharp'"),
    ],
)
def test_says_what_is_wrong(overrides: list[str], message: str) -> None:
    assert message in faults(*overrides)


def test_says_everything_at_once() -> None:
    said = faults("+pipelin=1", "+pipeline.shrink.stepz=1", "model=unnamed").splitlines()
    assert len(said) == 3


def test_a_group_not_chosen_lists_its_options() -> None:
    cfg = compose(["+experiment=shrink_tool"])
    cfg.model = "???"
    with pytest.raises(ConfigError, match=r"model is not chosen: add model=<option>; options: tool, unnamed"):
        check(cfg)


@pytest.mark.parametrize(
    "node",
    [
        "{_target_: counter.Tool, _partial_: true}",
        "{_target_: counter.Tool, _convert_: all, size: 1, sharp: false, name: null}",
        "{_target_: counter.Whatever, x: 1}",
        "{size: 1}",
        "[1, {_target_: counter.Tool, size: 2, sharp: true}]",
        "null",
    ],
)
def test_accepts(node: str) -> None:
    check(compose(["+experiment=shrink_tool", f"+pipeline.shrink.tool={node}"]))


def test_a_partial_still_refuses_unknown_keys() -> None:
    assert "did you mean 'pipeline.shrink.tool.size'" in faults(
        "+pipeline.shrink.tool={_target_: counter.Tool, _partial_: true, sise: 1}"
    )


def test_another_program_brings_its_own_root() -> None:
    @dataclass
    class Root:
        tool: Any = None

    check(OmegaConf.create({"tool": {"_target_": "counter.Tool", "size": 1, "sharp": True}}), Root)
    with pytest.raises(ConfigError, match="did you mean 'tool'"):
        check(OmegaConf.create({"tol": 1}), Root)


# --- build -----------------------------------------------------------------------------------------------------------


def tool(**values: Any) -> DictConfig:
    return OmegaConf.create({"model": {"_target_": "counter.Tool", "size": 1, "sharp": True, **values}})


def test_build_hands_runtime_objects_through() -> None:
    given = [object()]
    assert build(tool().model, name=given).given is given


def test_build_keeps_a_partial_partial() -> None:
    made = build(tool(_partial_=True).model, name="saw")
    assert made().given == "saw"


def test_build_gives_plain_containers() -> None:
    assert type(build(tool(name=[1, {"a": 2}]).model).given) is list
    assert build(OmegaConf.create({"a": [1]})) == {"a": [1]}
    assert build(None) is None


@pytest.mark.parametrize("overrides", [{}, {"name": "saw"}])
def test_build_says_where_a_constructor_refused(overrides: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^model: size must be >= 0, got -1$"):
        build(tool(size=-1).model, **overrides)


# --- main ------------------------------------------------------------------------------------------------------------

Program = Callable[..., tuple[int, str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Run a task as a program; its exit status and what it wrote to stderr."""

    def run(*arguments: str, task: Callable[[DictConfig], Any] = check) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        status = 0
        try:
            main(task)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr().err

    return run


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
        (["pipeline=shrink", "seed=x"], "could not be converted to Integer"),
        (["pipeline=shrink", "seed=1,2"], "add --multirun"),
        (["pipeline=shrink", "seed=[1"], "cannot read 'seed=[1'"),
        (["pipeline=shrink", "model.size=big"], "model.size of counter.Tool must be int, got 'big'"),
        (["-m", "pipeline=shrink", "model.sise=1,2"], "did you mean 'model.size'?"),
    ],
)
def test_user_errors_are_one_message(program: Program, arguments: list[str], message: str) -> None:
    status, said = program(*arguments)
    assert status == 2
    assert message in said
    assert said.count("error: ") == 1
    assert "Traceback" not in said


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
    status, said = program("pipeline=shrink", *arguments)
    assert (status, len(said.splitlines())) == (2, 1)
    assert said.startswith(f"error: {message}") or (said.startswith("error: argument --") and message in said)


def test_a_file_that_a_task_lacks_is_not_said_to_be_written(program: Program) -> None:
    with pytest.raises(FileNotFoundError):
        program("pipeline=shrink", task=lambda cfg: Path("/proc/nothing").mkdir())


def test_what_a_task_may_not_read_is_one_line(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise PermissionError(13, "Permission denied", "/text.csv")

    assert program("pipeline=shrink", task=task) == (2, "error: no access to /text.csv (Permission denied)\n")


def test_a_traceback_can_be_asked_for(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMEXP_TRACEBACK", "1")
    status, said = program("model.size=big")
    assert status == 2
    assert "Traceback" in said


def test_a_bug_keeps_its_traceback(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise ValueError("not meant for the user")

    with pytest.raises(ValueError, match="not meant"):
        program("pipeline=shrink", task=task)


def test_a_constructor_that_refuses_is_the_users_error(program: Program) -> None:
    status, said = program("pipeline=shrink", "model.size=-1", task=lambda cfg: build(cfg.model))
    assert (status, said) == (2, "error: model: size must be >= 0, got -1\n")


def test_a_malformed_file_is_the_users_error(program: Program, conf: Path) -> None:
    (conf / "model" / "torn.yaml").write_text("{size: [1")
    status, said = program("pipeline=shrink", "model=torn")
    assert status == 2
    assert "torn.yaml" in said


def test_a_full_disk_is_the_users_error(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise OSError(28, "No space left on device")

    status, said = program("pipeline=shrink", task=task)
    assert status == 2
    assert said.startswith(f"error: no space left in {compose().runs}: ") and len(said.splitlines()) == 1


def test_runs_that_is_a_file_is_the_users_error(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        status, said = program("pipeline=shrink", f"runs={folder}")
        assert status == 2
        assert said.startswith(f"error: cannot write to {folder} (a file has that name): ")


def test_interrupt(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    status, said = program("pipeline=shrink", task=task)
    assert status == 130
    assert len(said.splitlines()) == 1


def test_in_a_multirun_one_job_fails_and_the_others_go_on(program: Program) -> None:
    done = []

    def task(cfg: DictConfig) -> None:
        check(cfg)
        done.append(cfg.model.size)

    status, said = program("-m", "pipeline=shrink", "model.size=1,big,3", task=task)
    assert status == 2
    assert done == [1, 3]
    assert said.count("must be int, got 'big'") == 1
    assert "Traceback" not in said


def test_in_a_multirun_a_bug_is_shown_once(program: Program) -> None:
    def task(cfg: DictConfig) -> None:
        assert cfg.model.size != 2

    status, said = program("-m", "pipeline=shrink", "model.size=1,2,3", task=task)
    assert status == 1
    assert said.count("Traceback") == 1


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
    said = capsys.readouterr().out
    assert main_module.__doc__ in said
    assert re.search(r"experiment +broken, shrink_tool", said)


def test_errors_of_other_kinds_are_not_explained() -> None:
    assert explain(KeyError("x")) is None


def test_root_keys_are_documented() -> None:
    assert all(f"{item.name}:" in str(Run.__doc__) for item in fields(Run))
