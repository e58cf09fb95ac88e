"""A library is loaded only if it is the one that was compiled; whatever is in the way is one line, not a crash."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slimexp.kernel import build, store

FAKE = '#!/bin/sh\nfor last; do :; done\nprintf {content} > "$last"\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept; a compiler that writes ``good``, which alone can be loaded."""

    def register(library: Path) -> None:
        assert library.is_file() and os.stat(library).st_uid == os.geteuid()
        if library.read_bytes() != b"good":
            raise OSError(f"{library}: file too short")
        loaded.append(library)

    loaded: list[Path] = []
    monkeypatch.setenv("SLIMEXP_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own" / "kernel"))  # of which only the first is there
    monkeypatch.setattr(build, "_register", register)
    store.print_once.cache_clear()
    compiler(tmp_path, monkeypatch, FAKE.format(content="good"))
    return tmp_path / "own" / "kernel"


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    (tmp_path / "c++").write_text(script or "")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setattr(build.shutil, "which", lambda name: str(tmp_path / "c++") if script else None)


def failure() -> str | None:
    """As in a new process."""
    found: str | None = build.failure.__wrapped__()
    return found


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.suffix == ".so")


def _folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: os.truncate(path, 2),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"\x7fELF of another"),
        lambda path: path.write_text("text"),
        lambda path: path.chmod(0o666),
        lambda path: path.rename(path.with_name(path.name.replace("-", "-0", 2))),
        lambda path: path.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-x.so")),
        _folder,
        _pipe,
        _link,
    ],
)
def test_a_harmed_library_is_made_anew(
    cache: Path, harm: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure() is None and capsys.readouterr().err == ""
    (library,) = kept(cache)
    harm(library)
    assert failure() is None
    assert len(capsys.readouterr().err.splitlines()) <= 1
    store.print_once.cache_clear()
    assert library.read_bytes() == b"good" and not library.stat().st_mode & 0o022
    assert failure() is None and capsys.readouterr().err == ""  # once and for all


def test_a_kept_library_is_told_of_when_it_is_not_used(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failure()
    (library,) = kept(cache)
    os.truncate(library, 2)
    failure()
    assert capsys.readouterr().err == f"the compiled kernel {library} is not used, and made anew: it is damaged\n"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_nothing_is_loaded_from_a_folder_that_others_can_write(
    cache: Path, mode: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure()
    cache.chmod(mode)
    (cache.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "file"))
    before = kept(cache)
    assert "can be written by others" in str(failure()) and kept(cache) == before
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "users"))
    assert failure() is None and kept(cache) == before and kept(cache.parent / "users/slimexp/kernel")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (None, "no C++ compiler"),
        ("#!/bin/sh\nexit 1\n", "it does not compile here: Command '"),
        ("#!/bin/sh\necho 'a: fatal error: x' >&2; exit 1\n", "it does not compile here: a: fatal error: x"),
        ("#!/bin/sh\nprintf '\\377\\376\\033[2J\\n' >&2; exit 1\n", "it does not compile here: \ufffd\ufffd?[2J"),
        ("#!/bin/sh\nkill -9 $$\n", "it does not compile here: Command '"),
        ("#!/bin/sh\nexit 0\n", "leaves no kernel.o"),
        (FAKE.format(content="bad"), "file too short"),
        ("not a program", "Exec format error"),
    ],
)
def test_a_compiler_that_fails_is_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    script: str | None, expected: str,
) -> None:  # fmt: skip
    compiler(tmp_path, monkeypatch, script)
    assert expected in str(failure())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no compiled kernel, so layers run on those of torch: ") and line.isprintable()
    assert not cache.exists() or not list(cache.iterdir())
    compiler(tmp_path, monkeypatch, FAKE.format(content="good"))
    assert failure() is None  # not for good


def test_a_compiler_that_hangs_is_ended_with_its_children(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, monkeypatch, "#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(build, "_LONGEST_S", 0.3)
    began = time.monotonic()
    assert str(failure()).endswith("takes more than 0.3 s") and time.monotonic() - began < 20
    assert not list(cache.iterdir())


def test_no_home_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLIMEXP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "")
    assert failure() == "there is no home folder; name a folder of your own by SLIMEXP_CACHE=FOLDER"


def test_a_folder_that_cannot_be_made_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.write_text("a file")
    assert failure() == f"Not a directory: {cache}; name a folder of your own by SLIMEXP_CACHE=FOLDER"


@pytest.mark.parametrize("error", [RuntimeError(""), OSError(), ValueError(" \n"), RuntimeError("\nsaid\nmore")])
def test_an_error_without_a_message_is_told_by_its_name(
    error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(library: Path) -> None:
        raise error

    assert failure() is None and len(kept(cache)) == 1
    monkeypatch.setattr(build, "_register", register)  # fails for the library that is kept, and for the next
    assert failure() == ("said" if "said" in str(error) else type(error).__name__)
