"""Weights written tensor by tensor: plain safetensors, aligned, in shards where they are large."""

import errno
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slimexp.file import integrity
from slimexp.serialization import shards
from slimexp.serialization.shards import INDEX, WHOLE, Reader, Writer

STATE = {
    "odd": torch.arange(3, dtype=torch.bfloat16),
    "wide": torch.arange(8, dtype=torch.float32).reshape(2, 4),
    "mask": torch.tensor([True, False, True]),
    "none": torch.empty(0, 4),
    "count": torch.tensor(7, dtype=torch.int64),
    "columns": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
}


def write(folder: Path, max_bytes: int) -> None:
    with Writer(folder, max_bytes=max_bytes, names=len(STATE)) as writer:
        for name, tensor in STATE.items():
            writer.add(name, tensor)


def same(state: dict[str, Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(
        state[name].dtype == tensor.dtype and torch.equal(state[name], tensor) for name, tensor in STATE.items()
    )


@pytest.mark.parametrize("small", [10**6, 0])
def test_one_file_is_what_safetensors_reads(small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SMALL", small)
    write(tmp_path, 10**9)
    assert [path.name for path in tmp_path.iterdir()] == [WHOLE]
    assert same(load_file(tmp_path / WHOLE))
    with Reader(tmp_path) as reader:
        assert same(dict(reader))


def test_shards_have_an_index_and_keep_to_their_size(tmp_path: Path) -> None:
    write(tmp_path, 32)
    index = json.loads((tmp_path / INDEX).read_text())
    files = {path.name for path in tmp_path.iterdir()} - {INDEX}
    assert set(index["weight_map"].values()) == files and len(files) > 1 and index["weight_map"].keys() == STATE.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in STATE.values())
    with Reader(tmp_path) as reader:
        assert same(dict(reader))


def test_digests_are_known_when_files_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 32)
    files = {name: file["sha256"] for name, file in integrity.digests(tmp_path).items() if name != INDEX}
    read = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in files}
    assert files == read
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read once more"))
    assert {name: integrity.digest(tmp_path / name) for name in files} == read


def test_a_full_disk_is_noticed_when_a_shard_goes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(integrity, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 32)


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), Writer(tmp_path, max_bytes=1, names=1) as writer:
        writer.add("a", torch.ones(2))
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
