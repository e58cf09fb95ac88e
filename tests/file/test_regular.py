"""Only regular files are opened, nothing is waited for, and no more is held than was allowed."""

import io
import os
from pathlib import Path

import pytest

from slimexp.file import regular

pytestmark = pytest.mark.fast


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "device", "loop", ".", "nothing"):
        with pytest.raises(OSError):
            regular.content(tmp_path / name, 10)


def test_content_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert regular.content(tmp_path / "link", 5) == b"12345"
    with pytest.raises(ValueError, match="must have at most 0 MB"):
        regular.content(tmp_path / "file", 4)


def test_lines_are_bounded() -> None:
    text = b"one\r\n\n" + b"x" * 5 + b"\n" + b"x" * 200_000 + b"\nlast"
    assert list(regular.lines(io.BytesIO(text), 5)) == [b"one", b"", b"xxxxx", None, b"last"]
    assert list(regular.lines(io.BytesIO(b"x" * 200_000), 5)) == [None]


@pytest.mark.parametrize(
    ("relative", "inside"),
    [
        ("a/file", True),
        ("a/../a/file", True),
        ("a/out/../a/file", False),  # beside what the link names
        ("", False),
        (".", False),
        ("..", False),
        ("../runs-b/file", False),  # which begins alike
        ("/etc/passwd", False),
        ("a/out", False),
        ("a/in", True),
        ("a/loop", True),
    ],
)
def test_a_path_stays_in_its_folder(tmp_path: Path, relative: str, inside: bool) -> None:
    runs = tmp_path / "runs"
    (runs / "a").mkdir(parents=True)
    (runs / "a" / "out").symlink_to("/etc")
    (runs / "a" / "in").symlink_to("file")
    (runs / "a" / "loop").symlink_to("loop")
    found = regular.within(runs, relative)
    assert (found is not None) == inside
