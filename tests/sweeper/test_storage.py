"""A database that answers, one that does not, and one controller at a time on either."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from slimexp.config.command_line import main
from slimexp.config.password import mask_process
from slimexp.sweeper import storage
from slimexp.sweeper.sweep import Sweep
from slimexp.train import train

Make = Callable[..., Sweep]

SECRETS = ("hunter2", "hunter%202", "hunter 2", "hunter+2")
WITH_PASSWORD = [
    "postgresql://ann:hunter2@host:5432/sweeps",
    "postgresql://host/sweeps?user=ann&password=hunter2",
    "mysql+pymysql://ann:hunter2@host:3306/sweeps?charset=utf8",
    "mysql://host/sweeps?passwd=hunter2",
    "sqlite://ann:hunter2@/sweeps.db",
    "sqlite:////tmp/nowhere/sweeps.db?password=hunter2",
    "nonsense://ann:hunter2@host/sweeps",
    "postgresql://ann:hunter2@host:port/sweeps",
    "postgresql://ann:hunter2{x}@127.0.0.1:1/sweeps",
]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", r"storage must be like postgresql://USER@HOST:PORT/DATABASE, it is not"),
        ("postgresql://u:secret@h:x/db", r"storage must be like postgresql://USER@HOST:PORT/DATABASE, it is not"),
        ("sqlite:////nowhere/at/all.db", r"storage: no database answers at sqlite:////nowhere/at/all\.db"),
    ],
)
def test_what_is_no_database_is_one_error(make: Make, url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("x=1,2", storage=url)


def test_a_missing_driver_is_one_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"pip install 'slimexp\[postgres\]'"):
        make("x=1,2", storage="postgresql://somebody@127.0.0.1:1/sweeps")


def test_a_database_that_does_not_answer_is_one_error_within_seconds(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg", reason="pip install slimexp[postgres]")
    monkeypatch.setattr(storage, "ANSWER_S", 2)  # the least that libpq knows
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://somebody:secret@127.0.0.1:{silent.getsockname()[1]}/sweeps"
        with pytest.raises(
            ValueError, match=r"no database answers at postgresql\+psycopg://somebody:\*\*\*@"
        ) as caught:
            make("x=1,2", storage=url)
    assert "secret" not in str(caught.value)


def is_kept_back(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_no_error_has_it(make: Make, url: str) -> None:
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.storage") as caught:
        make("x=1,2", storage=url)
    assert is_kept_back(str(caught.value)) and "\n" not in str(caught.value)
    assert (
        caught.value.__suppress_context__
        or caught.value.__context__ is None
        or is_kept_back(str(caught.value.__context__))
    )


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{SECRETS[0]}@host/s",
        f"postgresql://ann:{SECRETS[1]}@host/s",
        f"postgresql://host/s?password={SECRETS[0]}",
    ],
    ids=["plain", "quoted", "setting"],
)  # ids reach a worker
def test_neither_workers_nor_hydras_config_have_it(
    make: Make, url: str, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "-m", f"hydra.sweeper.storage={url}", "seed=1,2"])
    given = {"task": ["seed=1,2"], "hydra": ["hydra/sweeper=pareto", f"hydra.sweeper.storage={url}"]}
    config = OmegaConf.create({"hydra": {"sweeper": {"storage": url}, "overrides": given}})
    OmegaConf.set_readonly(config, True)
    mask_process(config)
    assert sys.argv == ["train", "-m", "hydra.sweeper.storage=***", "seed=1,2"]
    assert is_kept_back(OmegaConf.to_yaml(config)) and config.hydra.overrides.task == ["seed=1,2"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: whoever may list this machine's processes") and is_kept_back(warning)
    make("x=told,3").run()
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("*.log")]
    assert any("hydra.sweeper.storage=***" in log for log in logs) and all(map(is_kept_back, logs))


@pytest.mark.parametrize(
    "override",
    [
        "hydra.sweeper.storage=postgresql://h/s?password=hunter2",
        "hydra.sweeper.storag=postgresql://ann:hunter2@host/sweeps",
        "hydra.sweeper.storage=[postgresql://ann:hunter2@host/sweeps]",
    ],
)
def test_the_program_does_not_tell_it(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", "hydra/sweeper=pareto", "+experiment=prune_t5", "seed=1,2", f"runs={tmp_path / 'runs'}", override]
    monkeypatch.setattr(sys, "argv", ["slimexp.train", *command])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; so it is put back
    monkeypatch.setenv("SLIMEXP_TRACEBACK", "1")
    with pytest.raises(SystemExit) as end:
        main(train)
    out, err = capfd.readouterr()
    assert end.value.code == 2 and "error: " in err
    assert is_kept_back(out + err)
    kept = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert all(map(is_kept_back, kept))


def test_sqlite_keeps_a_sweep_too(make: Make, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweeps.db'}"
    make("x=1,2", storage=url).run()
    assert make("x=1,2", storage=url).done == 2


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to("other"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lock", "study", "journal.jsonl"])
def test_what_is_no_file_in_a_sweeps_folder_is_one_error(make: Make, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "other").write_text("other")
    KINDS[kind](folder / name)
    with pytest.raises(ValueError, match=rf"^{folder / name} is (a link|no file).* must be "):
        make("x=1,2")
    assert (folder / "other").read_text() == "other" and not (folder / "nothing").exists()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
@pytest.mark.parametrize("name", ["study.partial", "journal.jsonl.partial"])
def test_a_name_that_is_written_aside_may_be_taken(make: Make, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "other").write_text("other")
    (folder / "journal.jsonl").write_text("damaged\n")
    KINDS[kind](folder / name)
    assert make("x=1,2").total == 2
    assert (folder / "study").read_text() == f"{folder}\n"
    assert (folder / "other").read_text() == "other" and not (folder / "nothing").exists()


def test_a_name_without_end_is_not_read_to_its_end(make: Make, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    with (tmp_path / "sweep" / "study").open("wb") as file:
        file.truncate(1 << 40)
    assert make("x=1,2").study.study_name == str(tmp_path / "sweep")


def run(*command: object, folder: str) -> None:
    """Run a program of PostgreSQL, which refuses to be root."""
    user = {"user": "nobody"} if os.getuid() == 0 else {}
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, **user)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a throwaway PostgreSQL server."""
    found = shutil.which("initdb") or next(iter(Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("PostgreSQL's initdb is not on this machine")
    pytest.importorskip("psycopg", reason="pip install slimexp[postgres]")
    programs = Path(found).resolve().parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    with tempfile.TemporaryDirectory() as folder:
        if os.getuid() == 0:
            shutil.chown(folder, "nobody")
        data = Path(folder) / "data"
        control = (programs / "pg_ctl", "-D", data, "-w", "-l", Path(folder) / "log")
        run(programs / "initdb", "-D", data, "-U", "sweeper", "-A", "trust", folder=folder)
        run(*control, "-o", settings, "start", folder=folder)
        yield f"postgresql://sweeper@127.0.0.1:{port}/postgres"
        run(*control, "-m", "immediate", "stop", folder=folder)


@pytest.mark.slow
def test_a_sweep_in_postgres_equals_the_one_in_a_journal(make: Make, postgres: str, tmp_path: Path) -> None:
    command = ("x=1,2,3,wrong", "y=1,2")
    fronts = []
    for name, url in (("journal", None), ("postgres", postgres)):
        sweep = make(*command, folder=tmp_path / name, storage=url)
        fronts.append(sorted((tuple(trial.values), *trial.params.items()) for trial in sweep.run()))
        again = make(*command, folder=tmp_path / name, storage=url)
        assert (again.done, again.failures) == (8, 2)
        again._lock.close()
    assert fronts[0] == fronts[1] and fronts[0]


@pytest.mark.slow
def test_one_controller_at_a_time_whichever_the_machine(
    make: Make, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines with a folder of the same name each."""
    for machine in ("one", "two"):
        (tmp_path / machine).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    first = make("x=1,2", folder=Path("runs"), storage=postgres)
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(ValueError, match=r"another machine is at work on the sweep 'runs' in this database: wait"):
        make("x=1,2", folder=Path("runs"), storage=postgres)
    first._lock.close()  # as when its process dies
    assert make("x=1,2", folder=Path("runs"), storage=postgres).run()
