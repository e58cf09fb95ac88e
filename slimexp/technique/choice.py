"""What a stage chose to retain, in a file: a training that is resumed does not choose again."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from slimexp.file import integrity
from slimexp.file.bounded import read_object
from slimexp.file.integrity import Damaged
from slimexp.host import process_group

Choice = Mapping[str, Mapping[str, Tensor]]  # axis -> scope -> indices


def kept(path: Path | None, choose: Callable[[], Choice], device: torch.device) -> Choice:
    """What ``choose`` returns, from the file where it is there and whole, else computed, and written for the next time.

    Args:
        path: The file, in a folder of what the choice depends on; ``None`` to compute it.
        choose: Computes it.
        device: Device of the indices.
    """
    if path is not None and path.exists():
        with suppress(Damaged):  # and chosen again
            content = read_object(path, strict=True, way_out=None)
            integrity.check_seal(content)
            return {
                axis: {scope: torch.tensor(indices, device=device) for scope, indices in scopes.items()}
                for axis, scopes in content["retained"].items()
            }
    chosen = choose()
    if path is not None and process_group.is_first():
        retained = {
            axis: {scope: indices.tolist() for scope, indices in scopes.items()} for axis, scopes in chosen.items()
        }
        integrity.write(path, json.dumps(integrity.sealed({"retained": retained})))
    return chosen
