"""Random states of training, of every process: what must be the same in all of them is shared and not drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from slimexp.host import process_group


def save(device: torch.device) -> dict[str, Any]:
    """The random state for a checkpoint: that of the first process, and a list of the ``others``' if there are any."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    first, *others = process_group.all_gather(own)
    return {**first, "others": others} if others else dict(first)


def restore(saved: Mapping[str, Any], device: torch.device, *, seed: Sequence[int]) -> None:
    """Go on with a saved state; a process that has none in it starts one of its own, for other rows drop other units.

    Args:
        saved: As ``save`` gives it, perhaps for fewer processes or more; empty where training begins.
        device: The device that is trained on.
        seed: Numbers that a state of its own is seeded with, beside the number of the process.
    """
    rank = process_group.rank()
    states = [saved, *saved.get("others", ())]
    if rank >= len(states) or "cpu" not in states[rank]:
        mixed = np.random.SeedSequence([*seed, rank]).generate_state(1)[0]
        torch.manual_seed(int(mixed))
        return
    torch.set_rng_state(states[rank]["cpu"].cpu())
    if "cuda" in states[rank] and device.type == "cuda":
        torch.cuda.set_rng_state(states[rank]["cuda"].cpu(), device)
