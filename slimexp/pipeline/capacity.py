"""What a machine has of what a run needs: one line that says so, and an error where it cannot be."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from slimexp.host import memory
from slimexp.host.console import phase
from slimexp.pipeline.resources import Need


def together(needs: Mapping[str, Need]) -> Need:
    """What stages that follow each other take: the most memory of any, and the disk of all."""
    return Need(
        host=max(need.host for need in needs.values()),
        device=max(need.device for need in needs.values()),
        disk=sum(need.disk for need in needs.values()),
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is, in bytes.

    Attributes:
        host: Memory that a process can have.
        device: Memory of a GPU; 0 where none is used.
        disk: Room in the folder of the runs.
        devices: Number of GPUs that there are.
    """

    host: int
    device: int
    disk: int
    devices: int

    @classmethod
    def here(cls, device: torch.device, runs: Path) -> "Machine":
        """This one."""
        gpu = device.type == "cuda"
        folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
        return cls(
            host=memory.available(),
            device=torch.cuda.mem_get_info(device)[1] if gpu else 0,
            disk=shutil.disk_usage(folder).free,
            devices=torch.cuda.device_count() if gpu else 0,
        )


def check(needs: Mapping[str, Need], machine: Machine) -> None:
    """Print what a run takes of what there is; warn of estimates that are more, and refuse what cannot be.

    Args:
        needs: Stage -> what it takes.
        machine: What there is.

    Raises:
        ValueError: The least that a stage takes is more than there is; says by how much, and what would fit.
    """
    if not needs:
        return
    total = together(needs)
    pairs = [("memory", total.host, machine.host), ("of a GPU", total.device, machine.device)]
    pairs.append(("disk", total.disk, machine.disk))
    phase("this run takes about " + ", ".join(f"{name} {_of(need, there)}" for name, need, there in pairs if need))
    refuse(needs, machine)
    for name, amount, there in pairs:
        if amount > there and there:
            phase(f"that is {_gb(amount - there)} more than there is ({name}): it may not fit; {_SMALLER[name]}")


def refuse(needs: Mapping[str, Need], machine: Machine) -> None:
    """Refuse what cannot be; arguments and errors as of ``check``."""
    for stage, need in needs.items():
        for where, least, there in (
            ("of memory", need.least_host, machine.host),
            ("of GPU memory", need.least_device, machine.device),
        ):
            if least > there and there:
                raise ValueError(_refusal(stage, need, least, there, where, machine))


_SMALLER = {
    "memory": "lower batch_size or model.max_length",
    "of a GPU": "batches that do not are computed in parts; lower model.max_length where that is too slow",
    "disk": "set runs=FOLDER on a larger disk, or remove runs by slimexp.clean",
}


def _refusal(stage: str, need: Need, least: int, there: int, where: str, machine: Machine) -> str:
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in (need.parts or {}).items() if size)
    ways: list[str] = []
    optimizer = (need.parts or {}).get("optimizer", 0)
    if optimizer and least - optimizer <= there:
        ways.append(f"optimizer@pipeline.{stage}.optimizer=adafactor ({_gb(least - optimizer)})")
    whole = least / need.copies  # on one device
    shards = math.ceil(whole / there)
    if where != "of memory" and 1 < shards <= machine.devices:
        ways.append(f"trainer=fsdp with {shards} devices ({_gb(whole / shards)} on each)")
    if not ways and (need.parts or {}).get("gradients"):
        ways.append(f"pipeline.{stage}.steps=0, which trains nothing")
    teacher = (need.parts or {}).get("teacher", 0)
    if teacher and (room := there - least + teacher) > 0:
        ways.append(f"a teacher of at most {_gb(room / need.copies)} (pipeline.{stage}.teacher)")
    ways.append(f"a machine with {_gb(least)}")
    return (
        f"pipeline.{stage} takes at least {_gb(least)} {where} ({parts}), {_gb(least - there)} more than there is: "
        f"use {', or '.join(ways)}"
    )


def _of(need: int, there: int) -> str:
    return f"{_gb(need)} of {_gb(there)}" if there else _gb(need)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size < 99.5e9 else f"{size / 1e9:.0f} GB"
