"""The memory that a process can have: a container's limit counts, and files that were read do not."""

from pathlib import Path

import pytest

from slimexp.host import memory

pytestmark = pytest.mark.fast
GB = 10**9


class Machine:
    total, available = 64 * GB, 40 * GB


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", Machine)
    monkeypatch.setattr(memory, "_GROUP_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)


def group(folder: Path, *, limit: str, used: int, idle: int, names: tuple[str, str], prefix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{prefix}inactive_file {idle}\n{prefix}active_file 5\n")


NEW, OLD = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_a_container_it_is_the_machine_s(tmp_path: Path) -> None:
    assert (memory.total(), memory.available()) == (64 * GB, 40 * GB)
    (tmp_path / "cgroup").write_text("0::/\n")
    group(tmp_path, limit="max", used=GB, idle=0, names=NEW)
    assert (memory.total(), memory.available()) == (64 * GB, 40 * GB)


def test_files_that_were_read_leave_room(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    group(tmp_path, limit=str(16 * GB), used=15 * GB, idle=13 * GB, names=NEW)
    assert (memory.total(), memory.available()) == (16 * GB, 14 * GB)


def test_the_narrowest_of_the_groups_it_lies_in_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/jobs/7/step\n")
    group(tmp_path / "jobs" / "7" / "step", limit="max", used=GB, idle=0, names=NEW)
    group(tmp_path / "jobs" / "7", limit=str(20 * GB), used=4 * GB, idle=GB, names=NEW)
    group(tmp_path / "jobs", limit=str(60 * GB), used=55 * GB, idle=0, names=NEW)
    assert (memory.total(), memory.available()) == (20 * GB, 5 * GB)


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("9:name=systemd:/\n4:cpu,memory:/hidden/by/a/container\n0::/\n")
    group(tmp_path / "memory", limit=str(16 * GB), used=15 * GB, idle=13 * GB, names=OLD, prefix="total_")
    assert (memory.total(), memory.available()) == (16 * GB, 14 * GB)
    group(tmp_path / "memory", limit=str(2**63 - 4096), used=15 * GB, idle=0, names=OLD, prefix="total_")
    assert (memory.total(), memory.available()) == (64 * GB, 40 * GB)
