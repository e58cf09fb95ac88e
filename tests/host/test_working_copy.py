"""The commit and whether files differ, of a repository that may be anybody's."""

import subprocess
from pathlib import Path

import pytest

from slimexp.host import working_copy

pytestmark = pytest.mark.fast

IDENTITY = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit of one file, in the working directory."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "a.txt").write_text("a\n")
    (folder / ".gitattributes").write_text("*.txt filter=evil filter.x=y\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *IDENTITY, *command], check=True)
    return folder


def test_the_commit_and_whether_files_differ(repository: Path) -> None:
    assert working_copy.state() == {"commit": _commit(), "dirty": False}
    assert len(_commit()) == 40
    (repository / "new.py").touch()
    assert working_copy.state() == {"commit": _commit(), "dirty": True}


@pytest.mark.parametrize(
    "key",
    ["core.fsmonitor", "filter.evil.clean", "filter.evil.process", "core.sshCommand", "diff.external", "core.pager"],
)
@pytest.mark.parametrize("included", [False, True], ids=["", "included"])
def test_nothing_that_a_repository_names_is_run(
    repository: Path, key: str, included: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = repository.parent / "ran"
    script = repository.parent / "script"
    script.write_text(f"#!/bin/sh\necho said >&2\ntouch '{mark}'\ncat\n")
    script.chmod(0o755)
    file = repository / ".git" / ("more" if included else "config")
    subprocess.run(["git", "config", "--file", str(file), key, str(script)], check=True)
    subprocess.run(["git", "config", "--file", str(file), "filter.evil.required", "true"], check=True)
    if included:
        subprocess.run(["git", "config", "include.path", "more"], check=True)
    (repository / "a.txt").write_text("b\n")
    found = working_copy.state()
    assert found is not None and found["dirty"]
    assert not mark.exists()
    assert capfd.readouterr() == ("", "")


def test_hooks_are_not_run_and_the_index_stays(repository: Path) -> None:
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "fsmonitor-watchman", "pre-commit"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{repository.parent / 'ran'}'\n")
        (hooks / name).chmod(0o755)
    (repository / "a.txt").touch()
    before = (repository / ".git" / "index").read_bytes()
    assert working_copy.state() == {"commit": _commit(), "dirty": False}
    assert (repository / ".git" / "index").read_bytes() == before and not (repository.parent / "ran").exists()


def test_names_that_are_no_text_are_changes_like_others(repository: Path) -> None:
    subprocess.run(["git", "config", "core.quotePath", "false"], check=True)
    subprocess.run(["git", "config", "status.showUntrackedFiles", "no"], check=True)
    Path(b"\xff\x1b".decode(errors="surrogateescape")).touch()
    assert working_copy.state() == {"commit": _commit(), "dirty": True}


@pytest.mark.parametrize("damage", ["no commit", "no repository", "broken", "slow", "no git"])
def test_what_git_does_not_tell_is_none(
    damage: str, repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if damage == "no commit":
        (repository / "new").mkdir()
        monkeypatch.chdir(repository / "new")
        subprocess.run(["git", "init", "-q"], check=True)
    if damage == "no repository":
        monkeypatch.chdir(repository.parent)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repository.parent))
    if damage == "broken":
        (repository / ".git" / "config").write_text("[core\n")
    if damage in ("slow", "no git"):
        (repository / "git").write_text("#!/bin/sh\nexec sleep 60\n")
        (repository / "git").chmod(0o755 if damage == "slow" else 0o644)
        monkeypatch.setenv("PATH", f"{repository}:/bin:/usr/bin" if damage == "slow" else str(repository))
        monkeypatch.setattr(working_copy, "_SECONDS", 0.1)
    assert working_copy.state() is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", ["x", "-1", "1.5", "1", "99999999999", "9" * 5000])
def test_settings_that_git_refuses_are_none(count: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", count)  # without the keys that it counts
    assert working_copy.state() is None


def test_settings_of_the_environment_are_kept(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers they are how a repository of another user is called safe."""
    (repository / "new.py").touch()
    (repository / "ignored").write_text("new.py\n")
    environment = {"COUNT": "1", "KEY_0": "core.excludesFile", "VALUE_0": str(repository / "ignored")}
    for name, value in environment.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    (repository / "ignored").write_text("new.py\nignored\n")
    assert working_copy.state() == {"commit": _commit(), "dirty": False}


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
