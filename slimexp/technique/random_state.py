"""The state of torch's random generators, which dropout draws from, as a checkpoint keeps it."""

import torch
from torch import Tensor


def get(device: torch.device) -> dict[str, Tensor]:
    """States of the generators of the CPU and of ``device``."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore(state: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators to what ``get`` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
