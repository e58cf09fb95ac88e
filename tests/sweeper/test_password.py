"""The password of a sweep's database is known to the database and the controller, and reaches nothing that is kept."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from omegaconf import OmegaConf

from hydra_plugins.slimexp_pareto import _forget_password
from slimexp.config.secret import holds_password, redacted, shown
from slimexp.sweeper.storage import without_password
from slimexp.sweeper.sweep import Sweep

Make = Callable[..., Sweep]

ROOT = Path(__file__).parents[2]
SECRETS = ("hunter2", "hunter%202", "hunter 2", "hunter+2")
WITH = [
    "postgresql://ann:hunter2@host:5432/sweeps",
    "postgresql+psycopg://ann:hunter2@host/sweeps",
    "postgresql://:hunter2@host/sweeps",
    "postgresql://ann:hunter%202@host/sweeps",
    "postgresql://ann:hunter2@x@host/sweeps",
    "postgresql://ann:hunter2/x@host/sweeps",
    "postgresql://host/sweeps?user=ann&password=hunter2",
    "postgresql://ann@host/sweeps?sslmode=require&sslpassword=hunter2",
    "postgresql://ann@host/sweeps?PASSWORD=hunter2",
    "mysql://ann:hunter2@host/sweeps",
    "mysql+pymysql://ann:hunter2@host:3306/sweeps?charset=utf8",
    "mysql://host/sweeps?passwd=hunter2",
    "sqlite://ann:hunter2@/sweeps.db",
    "sqlite:////tmp/nowhere/sweeps.db?password=hunter2",
    "oracle://ann:hunter2@host/sweeps",
    "nonsense://ann:hunter2@host/sweeps",
    "postgresql://ann:hunter2@host:port/sweeps",
    "postgresql://ann:hunter2{x}@127.0.0.1:1/sweeps",
]
WITHOUT = [
    "postgresql://ann@host:5432/sweeps",
    "postgresql://host/sweeps?sslmode=require",
    "sqlite:////tmp/nowhere/sweeps.db",
    "mysql://ann@host/sweeps",
    "a=1,2",
    "model.path=/a/b:c",
]


def is_kept_back(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


@pytest.mark.fast
@pytest.mark.parametrize("url", WITH)
def test_an_override_is_shown_without_it(url: str) -> None:
    for override in (f"hydra.sweeper.storage={url}", f"++hydra.sweeper.storage='{url}'"):
        assert holds_password(override) and shown(override).endswith("hydra.sweeper.storage=***")
    assert shown(f"hydra.sweeper={{storage: '{url}'}}") == "hydra.sweeper=***"


@pytest.mark.fast
@pytest.mark.parametrize("url", WITH)
def test_a_text_is_masked(url: str) -> None:
    told = redacted(f"could not override 'storag={url}'\nby '{url}', see https://host/path")
    assert is_kept_back(told) and told.endswith("see https://host/path") and told.count("***") >= 2


@pytest.mark.fast
@pytest.mark.parametrize("url", WITHOUT)
def test_what_holds_none_is_shown_whole(url: str) -> None:
    assert not holds_password(url) and shown(f"x={url}") == f"x={url}" == redacted(f"x={url}")


@pytest.mark.parametrize("url", [url for url in WITH if "@host/" not in url or "sqlite" in url or "nonsense" in url])
def test_no_error_has_it(make: Make, url: str) -> None:
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.storage") as said:
        make("x=1,2", storage=url)
    assert is_kept_back(str(said.value)) and "\n" not in str(said.value)
    assert (
        said.value.__suppress_context__ or said.value.__context__ is None or is_kept_back(str(said.value.__context__))
    )


@pytest.mark.fast
@pytest.mark.parametrize("url", ["postgresql://ann:hunter%202@h/s", "postgresql://ann@h/s?password=hunter%202"])
@pytest.mark.parametrize("secret", SECRETS[1:])
def test_a_library_that_tells_it_is_not_believed(url: str, secret: str) -> None:
    assert without_password(f"cannot reach '{secret}' at h", sqlalchemy.make_url(url)) == "cannot reach '***' at h"


@pytest.mark.parametrize("url", [WITH[0], WITH[3], WITH[6]], ids=["plain", "quoted", "setting"])  # ids reach a worker
def test_neither_workers_nor_hydras_config_have_it(
    make: Make, url: str, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "-m", f"hydra.sweeper.storage={url}", "seed=1,2"])
    given = {"task": ["seed=1,2"], "hydra": ["hydra/sweeper=pareto", f"hydra.sweeper.storage={url}"]}
    config = OmegaConf.create({"hydra": {"sweeper": {"storage": url}, "overrides": given}})
    OmegaConf.set_readonly(config, True)
    _forget_password(config)
    assert sys.argv == ["train", "-m", "hydra.sweeper.storage=***", "seed=1,2"]
    assert is_kept_back(OmegaConf.to_yaml(config)) and config.hydra.overrides.task == ["seed=1,2"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: whoever may list this machine's processes") and is_kept_back(warning)
    make("x=told,3").run()
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("*.log")]
    assert any("hydra.sweeper.storage=***" in log for log in logs) and all(map(is_kept_back, logs))


def test_without_one_nothing_is_said(monkeypatch: Any, capsys: Any) -> None:
    line = ["train", "-m", f"hydra.sweeper.storage={WITHOUT[0]}", "logger.url=https://ann:x@host"]
    monkeypatch.setattr(sys, "argv", list(line))
    given = {"task": [], "hydra": [line[2]]}
    _forget_password(OmegaConf.create({"hydra": {"sweeper": {"storage": WITHOUT[0]}, "overrides": given}}))
    assert sys.argv == line and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "override",
    [
        "hydra.sweeper.storage=postgresql://h/s?password=hunter2",
        "hydra.sweeper.storag=postgresql://ann:hunter2@host/sweeps",
        "hydra.sweeper.storage=[postgresql://ann:hunter2@host/sweeps]",
    ],
)
def test_the_program_does_not_tell_it(override: str, tmp_path: Path) -> None:
    command = ["-m", "hydra/sweeper=pareto", "+experiment=prune_t5", "seed=1,2", f"runs={tmp_path / 'runs'}", override]
    done = subprocess.run(
        [sys.executable, "-m", "slimexp.train", *command],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "SLIMEXP_TRACEBACK": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and "error: " in done.stderr
    assert is_kept_back(done.stdout + done.stderr)
    kept = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert all(map(is_kept_back, kept))
