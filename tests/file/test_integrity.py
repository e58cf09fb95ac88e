"""Files are whole or said to be damaged, and nothing is waited for."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.file import integrity
from slimexp.file.integrity import Damaged

pytestmark = pytest.mark.fast


def test_digests_are_those_of_every_file_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "below/b").write_bytes(b"")
    abc, nothing = (hashlib.sha256(content).hexdigest() for content in (b"abc", b""))
    expected = {"a": {"bytes": 3, "sha256": abc}, "below/b": {"bytes": 0, "sha256": nothing}}
    assert integrity.digests(tmp_path) == expected
    integrity.check_files(tmp_path, expected)
    (tmp_path / "new").touch()
    integrity.check_files(tmp_path, expected)


@pytest.mark.parametrize("name", ["../secret", "below/../../secret", "/etc/hostname", "", ".", "a\x1b", "..\\secret"])
def test_a_name_that_leads_elsewhere_is_not_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "model/below").mkdir(parents=True)
    monkeypatch.setattr(integrity, "digest", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(Damaged, match="is no name of a file in it") as error:
        integrity.check_files(tmp_path / "model", {name: {"bytes": 4, "sha256": ""}})
    assert str(error.value).isprintable()


def test_what_is_wrong_is_said_with_its_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 4096)
    expected = integrity.digests(tmp_path)
    for content, why in [(b"x" * 12, "a has 12 of 4096 bytes"), (b"y" * 4096, "a has other content than was written")]:
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(Damaged, match=f"^{why}$"):
            integrity.check_files(tmp_path, expected)
    (tmp_path / "a").unlink()
    with pytest.raises(Damaged, match=r"^a is missing$"):
        integrity.check_files(tmp_path, expected)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, sha256 = [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *content: read.append(1) or sha256(*content))
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    first = integrity.digest(path)
    assert integrity.digest(path) == first and len(read) == 1
    stamp = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as copies and archives set it
    assert integrity.digest(path) != first and len(read) == 2


def test_who_waits_for_a_digest_is_told_how_much_was_read(tmp_path: Path) -> None:
    """All of a large file in pieces, and of one that is known at once."""
    path, told = tmp_path / "a", []
    path.write_bytes(b"x" * (5 * 2**19))
    assert integrity.digest(path, read=told.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    integrity.take_digests([path], read=told.append)
    assert told == [2**20, 2**20, 2**19, 5 * 2**19]


def test_a_seal_is_of_all_that_is_sealed() -> None:
    content = integrity.sealed({"a": 1, "b": {"c": [2, None]}})
    integrity.check_seal(json.loads(json.dumps(content)))
    for changed in ({**content, "a": 2}, {**content, "d": 1}, {"a": 1}, {**content, "b": {"c": [2]}}):
        with pytest.raises(Damaged, match="other content"):
            integrity.check_seal(changed)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")
    assert integrity.is_other_kind(tmp_path / "a") and not integrity.is_other_kind(tmp_path / "none")
    with pytest.raises(Damaged, match="a is no file"):
        integrity.check_files(tmp_path, {"a": {"bytes": 0, "sha256": ""}})
    aside = integrity.set_aside(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [aside.name] == ["damaged-a"]


@pytest.mark.parametrize("figures", [None, [1.0], {"a": "1"}, {"a": True}, {"a": None}, {"a": {}}, {"a": float("inf")}])
def test_figures_are_finite_numbers(figures: Any) -> None:
    with pytest.raises(Damaged, match="metrics"):
        integrity.check_numbers(figures, "metrics")
    integrity.check_numbers({"a": 1, "b": 0.5}, "metrics")


def test_the_newest_is_what_is_kept_aside(tmp_path: Path) -> None:
    for content in ("old", "new"):
        (tmp_path / "a").write_text(content)
        aside = integrity.set_aside(tmp_path / "a")
    assert aside.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    synced, replace = os.fsync, os.replace

    def sync(opened: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{opened}')).name}")
        synced(opened)

    def rename(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    integrity.write(tmp_path / "a", "text")
    assert done == ["sync a.partial", "rename", f"sync {tmp_path.name}"]
    assert (tmp_path / "a").read_text() == "text"


@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_what_lies_at_the_other_name_is_removed(tmp_path: Path, place: Callable[[Path], None]) -> None:
    place(tmp_path / "a.17.partial")
    integrity.write(tmp_path / "a", "ä", partial=tmp_path / "a.17.partial")
    assert (tmp_path / "a").read_bytes() == "ä".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_written_aside_takes_the_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".{dead.pid}.a").touch()
    (tmp_path / ".1.a").touch()  # of a process that is alive
    with pytest.raises(RuntimeError), integrity.aside(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with integrity.aside(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".1.a", "a"]


def test_a_digest_needs_no_torch() -> None:
    code = "import sys, slimexp.file.integrity; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
