"""What is written is read again; what is damaged, or half-written, never is."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from slimexp.completion import store
from slimexp.completion.store import Text
from slimexp.file.integrity import Damaged

pytestmark = pytest.mark.fast
TEXTS = [Text(0, 0, "a\u2028b\n", "é\t\ud800", True), Text(3, 1, "", "\r\n", False)]


def never() -> Sequence[Text]:
    raise AssertionError("written again")


def test_it_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key.jsonl"
    store.write(path, lambda: TEXTS)
    store.write(path, never)
    assert store.read(path) == TEXTS


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-9], lambda data: data.replace(b"true", b"null"), lambda data: b"", lambda data: b"[]"],
)
def test_what_is_damaged_is_set_aside_and_written_again(
    tmp_path: Path, damage: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key.jsonl"
    store.write(path, lambda: TEXTS)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(Damaged, match=r"key\.jsonl"):
        store.read(path)
    store.write(path, lambda: TEXTS[:1])
    assert store.read(path) == TEXTS[:1] and (tmp_path / "damaged-key.jsonl").exists()
    assert "written again" in capsys.readouterr().out


def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "key.jsonl"

    def killed() -> Sequence[Text]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(path, killed)
    assert not path.exists()
    store.write(path, lambda: TEXTS)
    assert store.read(path) == TEXTS


def test_of_two_that_need_it_at_once_one_writes(tmp_path: Path) -> None:
    path, count, both = tmp_path / "key.jsonl", [], threading.Barrier(2)

    def slow() -> Sequence[Text]:
        count.append(1)
        threading.Event().wait(0.2)
        return TEXTS

    def work() -> None:
        both.wait()
        store.write(path, slow)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [1] and store.read(path) == TEXTS
