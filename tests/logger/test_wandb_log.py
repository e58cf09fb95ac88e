"""Transaction logs are read as W&B reads them, up to where they are cut or damaged."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from slimexp.logger import wandb_log
from slimexp.logger.wandb import Wandb
from slimexp.logger.wandb_log import BLOCK, HEADER, MAGIC

CONFIG = {"seed": 3, "pipeline": {"prune": {"sparsity": 0.5, "note": None}}, "long": "x" * (2 * BLOCK)}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, settled: Callable[[Path], Path]) -> Path:
    """Of a run that wrote offline; its records go over the ends of blocks."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        mirror = Wandb(project="test", entity=None, group="sweep", tags=[], mode="offline", folder=str(folder))
        mirror.identity = {"id": "abc", "job_type": "report", "resume": "allow"}
        mirror.start(name="run", config=CONFIG)
        mirror.summary("prune", {"cer": 0.1, "size": 3})
        mirror.summary("prune", {"cer": 0.1 + 0.2})
        mirror.finish()
    (file,) = settled(folder).rglob("*.wandb")
    return file


def test_a_run_is_read_back(log: Path) -> None:
    (found,) = wandb_log.logs(log.parents[2])
    assert (found.id, found.group, found.job_type, found.finished) == ("abc", "sweep", "report", True)
    assert found.config == CONFIG
    assert found.summary == {"prune/cer": 0.1 + 0.2, "prune/size": 3}
    assert found.folder == log.parent


def test_wandbs_own_reader_finds_the_same_records(log: Path) -> None:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this W&B cannot show a transaction log")
    expected = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    read_records = list(wandb_log.records(log))
    assert len(read_records) == len(expected) > 5
    assert [one.num for one in read_records] == [
        int(one["record"]["num"] if "record" in one else one["num"]) for one in expected
    ]


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.95, 0.999])
def test_a_cut_log_is_not_finished(log: Path, tmp_path: Path, kept: float) -> None:
    data = log.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(kept * len(data))])
    found = wandb_log.read(tmp_path / "cut")
    assert not found.finished
    assert found.config in ({}, CONFIG)


def test_a_damaged_log_is_read_up_to_the_damage(log: Path, tmp_path: Path) -> None:
    data = bytearray(log.read_bytes())
    data[-20] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    found = wandb_log.read(tmp_path / "damaged")
    assert not found.finished and found.config == CONFIG


def test_what_is_no_log_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "wandb" / "offline-run-1"
    folder.mkdir(parents=True)
    (folder / "run-1.wandb").write_bytes(b"something else")
    assert wandb_log.logs(tmp_path) == []


def framed(*contents: bytes) -> bytes:
    """A log of small records."""
    frames = [HEADER.pack(zlib.crc32(one, zlib.crc32(b"\1")), len(one), 1) + one for one in contents]
    return MAGIC + b"\0\0\0" + b"".join(frames)


def change(value: str, *path: str) -> bytes:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    one = Record()
    item = one.config.update.add(value_json=value)
    item.nested_key.extend(path)
    return bytes(one.SerializeToString())


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 50,
        change("{"),
        change("[" * 9_000, "a"),
        change("1" * 5_000, "a"),
        change("1", *"a" * 5_000),
    ],
    ids=["no message", "no JSON", "deep", "5,000 digits", "a deep key"],
)
def test_what_is_sound_before_a_hostile_record_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(framed(change("1", "seed"), content, change("2", "late")))
    found = wandb_log.read(tmp_path / "log")
    assert found.config == {"seed": 1} and not found.finished


def test_what_is_no_file_is_no_log(tmp_path: Path) -> None:
    folder = tmp_path / "wandb" / "run-1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "run-1.wandb")
    (folder / "run-2.wandb").symlink_to("/dev/zero")
    (folder / "run-3.wandb").mkdir()
    assert wandb_log.logs(tmp_path) == []


def test_a_record_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_log, "LONGEST", 1_000)
    part = b"x" * 500
    frame = HEADER.pack(zlib.crc32(part, zlib.crc32(b"\3")), len(part), 3) + part
    (tmp_path / "log").write_bytes(framed(change("1", "seed")) + 50 * frame)
    assert wandb_log.read(tmp_path / "log").config == {"seed": 1}
