"""A cache on the disk: what is written is read, by several processes, and nothing half-written is."""

import json
import multiprocessing
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slimexp.teacher_cache import store as module
from slimexp.teacher_cache.store import ABOUT, Store

ABOUT_TEACHER = {"teacher": "a", "corpus": {"seed": 0, "name": "x"}, "max_length": 16}
NOTES: dict[str, Any] = {"seconds": 1.0, "labels": 3, "estimates": {}}


def keys(*numbers: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(numbers, dtype=np.uint64)


def add(store: Store, *numbers: int, each: int = 2) -> Tensor:
    """Rows of the given keys, whose values say whose they are."""
    values = torch.cat([torch.full((each, 3), float(number)) for number in numbers])
    with store.alone():
        store.append(keys(*numbers), np.full(len(numbers), each), values, NOTES)
    return values


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", ABOUT_TEACHER)


def test_rows_are_read_from_whichever_part_holds_them(store: Store) -> None:
    add(store, 9, 3, 2**63 + 1)
    add(store, 5)
    again = Store(store.folder, ABOUT_TEACHER)
    again.look()
    assert again.has(keys(3, 4, 5, 2**63 + 1)).tolist() == [True, False, True, True]
    counted = torch.tensor([[True, False, True], [False, True, True], [True, True, False]])
    read = again.read(keys(5, 2**63 + 1, 3), counted)
    assert read.dtype == torch.float32 and read.shape == (3, 3, 3)
    assert read[0, :, 0].tolist() == [5, 0, 5] and read[2, :, 0].tolist() == [3, 3, 0]
    assert read[1, 2, 0] == float(2**63 + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_values_come_back_in_their_type_bit_for_bit(store: Store, dtype: torch.dtype) -> None:
    values = (100 * torch.rand(4, 6)).to(dtype)
    with store.alone():
        store.append(keys(1, 2), np.array([3, 1]), values, NOTES)
    read = store.read(keys(1, 2), torch.tensor([[True, True, True], [True, False, False]]))
    assert read.dtype == dtype and torch.equal(read[0], values[:3]) and torch.equal(read[1, 0], values[3])


def test_a_classifier_has_one_label_a_row(store: Store) -> None:
    add(store, 1, 2, each=1)
    assert store.read(keys(2, 1), torch.tensor([True, True]))[:, 0].tolist() == [2, 1]


def test_a_row_that_is_lacking_is_an_error(store: Store) -> None:
    add(store, 1)
    with pytest.raises(ValueError, match="lacks a row"):
        store.read(keys(7), torch.tensor([[True, True]]))


def test_another_teacher_or_text_is_refused_by_what_differs(store: Store) -> None:
    add(store, 1)
    other = Store(store.folder, {"teacher": "b", "corpus": {"seed": 1, "name": "x"}, "max_length": 16})
    with (
        pytest.raises(ValueError, match=r"\(teacher: a, not b; corpus\.seed: 0, not 1\).*folder at null"),
        other.alone(),
    ):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else than a teacher cache"), Store(tmp_path, {}).alone():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_writer_left_is_no_part_and_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, 1)
    publish = module.integrity.publish

    def killed(partial: Path, path: Path) -> None:
        if path.name.startswith("part-"):
            shutil.copytree(partial, store.folder / f".{path.name}.999999")  # as a kill leaves it
            raise KeyboardInterrupt
        publish(partial, path)

    monkeypatch.setattr(module.integrity, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        add(store, 2)
    monkeypatch.undo()
    again = Store(store.folder, ABOUT_TEACHER)
    again.look()
    assert again.has(keys(1, 2)).tolist() == [True, False]
    assert len(list(store.folder.glob(".part-*"))) == 1
    with again.alone():
        assert list(store.folder.glob(".part-*")) == []


@pytest.mark.parametrize("name", ["keys.npy", "starts.npy", "values.npy", "part.json"])
def test_a_damaged_part_is_set_aside_and_the_others_are_read(
    store: Store, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, 1)
    add(store, 2)
    path = store.folder / "part-000000" / name
    os.truncate(path, path.stat().st_size - 5)
    again = Store(store.folder, ABOUT_TEACHER)
    again.look()
    assert again.has(keys(1, 2)).tolist() == [False, True]
    assert "is damaged (" in capsys.readouterr().out
    assert (store.folder / "damaged-part-000000").is_dir()
    add(again, 1)
    assert again.has(keys(1, 2)).all()


def test_more_than_the_disk_has_room_for_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**7, 0, 1_234_567))
    store.check_room(1_234_567)
    with pytest.raises(ValueError, match=r"needs 1,234,568 bytes more in .*, where 1,234,567 are free: use"):
        store.check_room(1_234_568)


def _fill(folder: Path, number: int, turns: Any) -> None:
    store = Store(folder, ABOUT_TEACHER)
    with store.alone():
        turns.put(("in", number))
        wanted = [n for n in (1, 2, 3) if not store.has(keys(n))[0]]
        if wanted:
            values = torch.ones(len(wanted), 3)
            store.append(keys(*wanted), np.ones(len(wanted), dtype=np.int64), values, NOTES)
        turns.put(("out", number))


@pytest.fixture
def together(tmp_path: Path) -> Iterator[list[tuple[str, int]]]:
    """What three processes did that filled one cache at the same time."""
    context = multiprocessing.get_context("fork")
    turns: Any = context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path / "cache", n, turns)) for n in range(3)]
    for worker in workers:
        worker.start()
    yield [turns.get(timeout=60) for _ in range(6)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def test_one_process_fills_while_others_wait(together: list[tuple[str, int]], tmp_path: Path) -> None:
    assert [turn for turn, _ in together] == ["in", "out"] * 3
    assert all(one == other for (_, one), (_, other) in zip(together[::2], together[1::2], strict=True))
    store = Store(tmp_path / "cache", ABOUT_TEACHER)
    store.look()
    assert len(store.parts) == 1 and store.has(keys(1, 2, 3)).all()


def test_what_it_is_for_is_sealed(store: Store) -> None:
    add(store, 1)
    path = store.folder / ABOUT
    path.write_text(json.dumps({**json.loads(path.read_text()), "teacher": "b"}))
    with pytest.raises(ValueError, match="other content than was written"), store.alone():
        pass
