"""The GPUs of this machine, found without a driver's library: a controller of processes needs no torch for it."""

import os
from collections.abc import Sequence
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"  # what CUDA lets a process see; a worker's own is set before it imports torch


def gpus(devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that a process started now would see, as ``CUDA_VISIBLE_DEVICES`` names them.

    Args:
        devices: Folder of the machine's device files.
    """
    if (chosen := os.environ.get(VISIBLE)) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    numbers = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    return [str(position) for position, _ in enumerate(sorted(filter(str.isdecimal, numbers)))]


def least_used(names: Sequence[str], used: Sequence[str], count: int) -> tuple[str, ...]:
    """The ``count`` of ``names`` that occur least often in ``used``, earlier ones first."""
    return tuple(sorted(names, key=lambda name: (list(used).count(name), names.index(name)))[:count])
