"""The commit of the working directory, by calls of git that run no program which the repository configures."""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

_SECONDS = 10
# A repository's own configuration may name programs: a monitor of files, hooks, filters, a transport.
_OFF = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.sshCommand=false", "submodule.recurse=false")
_QUIET = {
    "GIT_OPTIONAL_LOCKS": "0",  # the index stays as it is
    "GIT_ALLOW_PROTOCOL": "",  # nothing is fetched
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
_OWN_SCOPES = (b"local", b"worktree")


def state() -> dict[str, Any] | None:
    """``{"commit", "dirty"}``: whether files differ from the commit, untracked ones included.

    Filters that the repository itself configures are not run, and of submodules only the commit counts.

    Returns:
        ``None`` outside a repository, without git, where git refuses the settings of the environment, or where it
        takes more than 10 seconds.
    """
    try:
        commit = _output("rev-parse", "--verify", "HEAD").strip()
        changes = ["status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=dirty"]
        dirty = _output(*changes, settings=_without_filters())
        return {"commit": commit.decode("ascii"), "dirty": bool(dirty.strip())}
    except (
        OSError,
        subprocess.SubprocessError,
        ValueError,
    ):  # the last: GIT_CONFIG_COUNT is no number, which git refuses
        return None


def _without_filters() -> dict[str, str]:
    """Settings that take the repository's own filters away."""
    try:
        entries = _output("config", "--null", "--show-scope", "--name-only", "--get-regexp", r"^filter\.").split(b"\0")
    except subprocess.CalledProcessError:  # there is none
        return {}
    own = {os.fsdecode(name) for scope, name in zip(entries[::2], entries[1::2], strict=False) if scope in _OWN_SCOPES}
    return {name: "false" if name.endswith(".required") else "" for name in own}


def _output(*command: str, settings: Mapping[str, str] | None = None) -> bytes:
    options = [part for setting in _OFF for part in ("-c", setting)]
    place = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    environment = {"GIT_CONFIG_COUNT": str(place + len(settings or {}))}  # by -c a name with '=' would be another
    for index, (name, value) in enumerate((settings or {}).items(), start=place):
        environment |= {f"GIT_CONFIG_KEY_{index}": name, f"GIT_CONFIG_VALUE_{index}": value}
    return subprocess.run(
        ["git", *options, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SECONDS,
        check=True,
        env={**os.environ, **_QUIET, **environment},
    ).stdout
