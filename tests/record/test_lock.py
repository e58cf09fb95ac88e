"""A lock is held by one at a time; who waits for it says so."""

import threading
from pathlib import Path

import pytest

from slimexp.record import lock

pytestmark = pytest.mark.fast


def test_one_at_a_time_and_who_waits_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, seen, second = tmp_path / "lock", [], threading.Event()

    def later() -> None:
        second.set()
        with lock.held(path, "another process works on it"):
            seen.append("second")

    thread = threading.Thread(target=later)
    with lock.held(path, "nobody"):
        thread.start()
        assert second.wait(5)
        thread.join(0.1)
        seen.append("first")
    thread.join(5)
    assert seen == ["first", "second"]
    assert capsys.readouterr().out == "another process works on it, waiting\n"


def test_it_is_free_again_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), lock.held(tmp_path / "lock", "it"):
        raise RuntimeError
    with lock.held(tmp_path / "lock", "it"):
        assert capsys.readouterr().out == ""
