"""What is kept between processes is found where the user says, and nothing that others could have written is."""

import os
from pathlib import Path

import pytest

from slimexp.kernel import store

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLIMEXP_CACHE": "/own", "XDG_CACHE_HOME": "/xdg", "HOME": "/h"}, ["/own/kernel", "/xdg/slimexp/kernel"]),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/h"}, ["/xdg/slimexp/kernel"]),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, ["/h/.cache/slimexp/kernel"]),
        ({"HOME": "/h"}, ["/h/.cache/slimexp/kernel"]),
        ({"HOME": ""}, []),
        ({"SLIMEXP_CACHE": "/own", "HOME": ""}, ["/own/kernel"]),
    ],
)
def test_where_things_are_kept(
    environment: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLIMEXP_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert store.folders() == [Path(one) for one in expected]


def test_a_file_is_read_if_it_is_one_and_as_small_as_it_must_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    assert store.read(file, most=4) == b"1234"
    with pytest.raises(ValueError, match="longer than 3 bytes"):
        store.read(file, most=3)
    with pytest.raises(FileNotFoundError):
        store.read(tmp_path / "absent", most=3)
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises((OSError, ValueError)):
            store.read(tmp_path / name, most=4)


@pytest.mark.parametrize(("folder", "file", "fits"), [
    (0o700, 0o600, True), (0o755, 0o644, True), (0o777, 0o600, False), (0o775, 0o600, False), (0o1777, 0o600, False),
    (0o700, 0o606, False), (0o700, 0o660, False),
])  # fmt: skip
def test_what_others_can_write_is_not_trusted(tmp_path: Path, folder: int, file: int, fits: bool) -> None:
    (tmp_path / "place").mkdir()
    path = tmp_path / "place" / "file"
    path.write_bytes(b"1")
    path.chmod(file)
    path.parent.chmod(folder)
    assert store.read(path, most=1) == b"1"
    if fits:
        assert store.read(path, most=1, trusted=True) == b"1"
    else:
        with pytest.raises(ValueError, match="can be written by others"):
            store.read(path, most=1, trusted=True)


def test_what_another_user_wrote_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.geteuid():
        os.chown(tmp_path, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 12346)
    with pytest.raises(ValueError, match="belongs to another user"):
        store.check_own(tmp_path, tmp_path.stat())
