"""Plain multirun with every launcher: the same records, and one sentence where it is not installed."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.slimexp_launcher import Borrowed
from slimexp.config.build import ConfigError
from slimexp.config.composition import CONF_DIR
from slimexp.record import record

ROOT = CONF_DIR.parent
NAMES = sorted(path.stem for path in (CONF_DIR / "hydra/launcher").glob("*.yaml"))
TYPED = [
    "pipeline=prune", "pipeline.prune.steps=1", "model=pretrained", "model.max_length=16", "data=files",
    "data.task=seq2seq", "logger=none", "trainer=fast", "measure=[size]",
]  # fmt: skip


def composed(name: str, *overrides: str) -> DictConfig:
    Plugins.instance()  # what an installed plugin registers is there, as it is when a command is typed
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        lines = [f"hydra/launcher={name}", *overrides]
        return hydra.compose("config", lines, return_hydra_config=True)


def installed(name: str) -> bool:
    plugin = OmegaConf.load(CONF_DIR / "hydra/launcher" / f"{name}.yaml").launcher.plugin
    return find_spec(".".join(plugin.split(".")[:2])) is not None


@pytest.fixture
def command(tiny_folder: Callable[..., Path], table: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Overrides -> what a multirun over two sparsities of a tiny model ended with."""
    given = [f"model.path={tiny_folder('seq2seq')}", f"data.path={table}", "pipeline.prune.sparsity=0.2,0.5"]

    def call(*overrides: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "slimexp.train", "-m", *TYPED, *given, *overrides]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    return call


@pytest.mark.parametrize("name", NAMES)
def test_a_launcher_that_is_not_installed_is_one_error(
    name: str, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    if installed(name):
        pytest.skip(f"the package of {name} is here")
    done = command(f"hydra/launcher={name}", f"runs={tmp_path / 'runs'}")
    extra = name.partition("_")[0]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: hydra/launcher={name} needs a package that is not here" in done.stderr
    assert f"pip install 'slimexp[{extra}]'" in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "submitit_slurm"])
def test_every_launcher_leaves_the_records_of_the_basic_one(
    name: str, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    if not installed(name):
        pytest.skip(f"the package of {name} is not here")
    for launcher in ("basic", name):
        done = command(f"hydra/launcher={launcher}", f"runs={tmp_path / launcher}")
        assert done.returncode == 0, done.stderr
        assert "deprecated" not in done.stderr
    keys = [sorted((row.stage, row.key) for row in record.read(tmp_path / launcher)) for launcher in ("basic", name)]
    assert keys[0] == keys[1] and len(keys[0]) == 3
    assert [path.name for path in (tmp_path / name).iterdir() if path.is_file()] != []
    assert not list((tmp_path / name).glob("*.log"))


@pytest.mark.parametrize(
    "plugin",
    [
        "subprocess.Popen", "os.system", "builtins.exec", "hydra_plugins.slimexp_launcher.sys.exit", "Popen", "", None,
        ["subprocess.Popen"], "hydra_plugins.slimexp_launcher.Borrowed", f"{__name__}.Fake",
    ],
)  # fmt: skip
def test_nothing_but_a_launcher_of_conf_is_imported(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimexp.host.extra.require", lambda *given, **named: pytest.fail("it was imported"))
    with pytest.raises(
        ConfigError, match=r"^hydra\.launcher\.plugin must be as conf/hydra/launcher has it, got .*=jobl"
    ):
        Borrowed(plugin=plugin, extra="none", args=["true"]).setup(
            hydra_context=None,
            task_function=print,
            config=composed("joblib"),  # type: ignore[arg-type]
        )


def test_a_command_line_starts_no_other_program(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "touched"
    settings = ["~hydra.launcher.n_jobs", "~hydra.launcher.batch_size", "~hydra.launcher.pre_dispatch"]
    given = ["hydra.launcher.plugin=subprocess.Popen", f"+hydra.launcher.args=[touch,{file}]"]
    done = command("hydra/launcher=joblib", *given, *settings, f"runs={tmp_path / 'runs'}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: hydra.launcher.plugin must be") and not file.exists()


class Fake(Launcher):
    """Ends as it is told."""

    def __init__(self, ends: Any) -> None:
        self.ends = ends

    def setup(self, **given: Any) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if isinstance(self.ends, Exception):
            raise self.ends
        failed = JobReturn(overrides=["seed=1"], status=JobStatus.FAILED)
        failed.return_value = self.ends[0]
        return [JobReturn(overrides=["seed=0"], status=JobStatus.COMPLETED), failed]


class Ready(Launcher):
    """Takes any settings, and starts nothing."""

    def __init__(self, **settings: Any) -> None: ...

    def setup(self, **given: Any) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return []


CLASSES = ("JoblibLauncher", "RayLauncher", "LocalLauncher", "SlurmLauncher")


def borrowed(ends: Any) -> Borrowed:
    launcher = Borrowed(plugin=f"{__name__}.Fake", extra="none")
    launcher.launcher = Fake(ends)
    return launcher


def test_failed_jobs_are_listed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(borrowed([ConfigError("seed is wrong")]).launch([["seed=0"], ["seed=1"]], 4)) == 2
    assert capsys.readouterr().err == "job 5 failed: seed=1\nerror: seed is wrong\n"


def test_a_job_that_dies_is_one_error() -> None:
    with pytest.raises(ConfigError, match=r"^a job's process is gone \(RuntimeError: killed by SIGKILL\); what is"):
        borrowed(RuntimeError("killed\nby SIGKILL")).launch([["seed=0"]], 0)
    with pytest.raises(ConfigError, match=r"^said by a check$"):
        borrowed(ConfigError("said by a check")).launch([["seed=0"]], 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trainer", ["cpu", "gpu"])
def test_what_gives_trials_no_gpu_of_their_own_says_what_does(
    name: str, trainer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed(name, f"trainer={trainer}")
    monkeypatch.setattr(
        "slimexp.host.extra.require", lambda module, **_: SimpleNamespace(**{cls: Ready for cls in CLASSES})
    )
    settings = {key: value for key, value in cfg.hydra.launcher.items() if key != "_target_"}
    Borrowed(**settings).setup(hydra_context=None, task_function=print, config=cfg)  # type: ignore[arg-type]
    shares = trainer == "gpu" and name in ("joblib", "submitit_local")
    assert ("hydra/sweeper=pareto gives each worker its own" in capsys.readouterr().err) == shares


@pytest.mark.parametrize("name", NAMES)
def test_one_thread_per_trial(name: str) -> None:
    assert composed(name, "pipeline=prune").hydra.job.env_set.OMP_NUM_THREADS in ("1", 1)


def test_what_slurm_is_handed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install slimexp[submitit]")
    import submitit

    commands = tmp_path / "bin"
    commands.mkdir()
    for command, body in {"sbatch": f'cp "$1" {tmp_path}/seen.sh\necho Submitted batch job 7', "srun": ""}.items():
        (commands / command).write_text(f"#!/bin/sh\n{body}\n")
        (commands / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submitit.Job, "results", lambda self: [JobReturn(status=JobStatus.COMPLETED)])
    given = [f"runs={tmp_path / 'runs'}", "name=front", "hydra.launcher.partition=small", "hydra.launcher.mem_gb=16"]
    cfg = composed("submitit_slurm", *given)
    settings = {key: value for key, value in cfg.hydra.launcher.items() if key != "_target_"}
    launcher = Borrowed(**settings)
    launcher.setup(hydra_context=None, task_function=print, config=cfg)  # type: ignore[arg-type]
    assert len(launcher.launch([["seed=0"], ["seed=1"]], 0)) == 2
    lines = (tmp_path / "seen.sh").read_text().splitlines()
    options = ("array=0-1%2", "time=240", "mem=16GB", "cpus-per-task=1", "partition=small", "job-name=front")
    assert [line for line in options if f"#SBATCH --{line}" not in lines] == []
    assert f"{tmp_path / 'runs' / 'front' / 'sweep'}/%j" in lines[-1].replace("%A_%a", "%j")
