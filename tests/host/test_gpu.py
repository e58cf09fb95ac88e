from pathlib import Path

import pytest

from slimexp.host import gpu


def test_device_files_are_counted_unless_the_environment_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv(gpu.VISIBLE, raising=False)
    assert gpu.gpus(tmp_path) == ["0", "1"]
    monkeypatch.setenv(gpu.VISIBLE, "2, GPU-7f")
    assert gpu.gpus(tmp_path) == ["2", "GPU-7f"]
    for none in ("", "-1"):
        monkeypatch.setenv(gpu.VISIBLE, none)
        assert gpu.gpus(tmp_path) == []


def test_the_least_used_come_first() -> None:
    assert gpu.least_used(["0", "1", "2"], ["0", "2", "0"], 2) == ("1", "2")
    assert gpu.least_used([], [], 1) == ()
