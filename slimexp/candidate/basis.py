"""What the kept numbers of a search depend on, each by a word for a message."""

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from slimexp.data.base import Example
from slimexp.model.base import Source
from slimexp.record.environment import environment
from slimexp.record.stage import key

_OF_CHOICE = ("quantizer", "group_size", "symmetric", "include", "exclude", "embeddings")  # when it is rounded alone


def of_scores(
    source: Source, rows: Sequence[Example], cut: DictConfig | None, quantize: DictConfig | None, seed: int
) -> dict[str, Any]:
    """Of the loss of a choice alone.

    Args:
        source: Where the dense model comes from.
        rows: Text that losses are taken on.
        cut: Config of the cut, if there is one.
        quantize: Config of the stage that rounds, if there is one.
        seed: Of the training text.
    """
    settings = {} if quantize is None else _settings(quantize)
    return {
        "model": source.fingerprint(),
        "text": key({"rows": [(row.source, row.target, row.label) for row in rows]}),
        "number of rows": len(rows),
        "longest row in tokens": source.max_length,
        "batches for the importance of units": None if cut is None else cut.calibration_batches,
        "seed": seed,
    } | {f"{name} of the rounding": settings[name] for name in _OF_CHOICE if name in settings}


def of_rounding(quantize: DictConfig | None) -> dict[str, Any]:
    """Of whole models beside ``of_scores``: all settings of the stage that rounds them, but for the bits."""
    settings = {} if quantize is None else _settings(quantize)
    return {f"{name} of the stage that rounds": settings[name] for name in sorted(settings) if name != "bits"}


def of_latency(source: Source, request: DictConfig, dtype: str, device: torch.device) -> dict[str, Any]:
    """Of milliseconds beside ``of_rounding``.

    Args:
        source: Where the dense model comes from.
        request: Config of measure ``latency``.
        dtype: Type of the stored weights.
        device: Device that requests run on.
    """
    return {
        "model": source.fingerprint(),
        "request": key({"measure": OmegaConf.to_container(request, resolve=True)}),
        "stored type": dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "hardware": key(environment()["hardware"]),
    }


def _settings(node: DictConfig) -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(node, resolve=True)
    return {str(name): value for name, value in settings.items()}
