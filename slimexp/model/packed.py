"""Documents side by side in one row of a causal language model: whether a model can keep them apart, and how."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

Separation = Literal["mask", "positions"]

_TOKENS = 12  # of each document of the trial
_SHARE = 0.02  # of the effect that an earlier document has where nothing separates the two: beneath it is rounding
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # other kinds of layers carry a state along


def windows(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """Windows of at most ``length`` tokens; each starts with the last token of the one before, which predicts on."""
    return [ids[start : start + length] for start in range(0, max(len(ids) - 1, 1), length - 1)]


def inputs(position_ids: Tensor, separation: Separation) -> dict[str, Tensor | None]:
    """Arguments of a model's forward pass by which no document of a row attends to another.

    Args:
        position_ids: [B, T]; each document starts at 0.
        separation: ``mask`` hands the model a mask [B, 1, T, T]. ``positions`` has transformers derive one per kind of
            layer, which reads back from the GPU in every pass.
    """
    if separation == "positions":
        return {"position_ids": position_ids, "attention_mask": None}
    document = (position_ids == 0).cumsum(1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return {"position_ids": position_ids, "attention_mask": same.tril()}


@torch.no_grad()
def separation(model: PreTrainedModel) -> Separation | None:
    """How ``model`` keeps the documents of a row apart; ``None`` where it does not.

    Two short documents are run in one row. The logits of the second must not change with the first, and must be those
    that it has alone: layers with a state, and positions that cannot restart, are found out whatever the architecture.

    Args:
        model: A causal language model in eval mode.
    """
    takes_positions = "position_ids" in signature(model.forward).parameters
    if not takes_positions or not set(getattr(model.config, "layer_types", None) or ()) <= _ATTENTION:
        return None
    ways: list[Separation] = ["mask", "positions"] if _attends_everywhere(model) else ["positions"]
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(3 * _TOKENS, device=model.device).view(3, -1) * 7919 % size  # spread over the vocabulary
    second = ids[2:]
    one, other = torch.cat([ids[:1], second], 1), torch.cat([ids[1:2], second], 1)
    alone, after = _logits(model, second), _logits(model, one)
    limit = _SHARE * (after - _logits(model, other)).abs().max()
    rounding = 16 * torch.finfo(model.dtype).eps * alone.abs().max()
    positions = torch.arange(_TOKENS, device=model.device).repeat(2)[None]
    for way in ways:
        try:
            packed, changed = (_logits(model, row, inputs(positions, way)) for row in (one, other))
        except (TypeError, ValueError, RuntimeError, IndexError):  # it wants another shape
            continue
        if (packed - changed).abs().max() <= limit and (packed - alone).abs().max() <= limit + rounding:
            return way
    return None


def _logits(model: PreTrainedModel, row: Tensor, more: Mapping[str, Any] | None = None) -> Tensor:
    """Logits of the last document of ``row``."""
    logits: Tensor = model(input_ids=row, use_cache=False, **(more or {})).logits
    return logits[:, -_TOKENS:].float()


def _attends_everywhere(model: PreTrainedModel) -> bool:
    """Whether one mask [B, 1, T, T] is right for all of its layers, in the form that torch's attention takes."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    local = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return config._attn_implementation == "sdpa" and kinds <= {"full_attention"} and not any(local)
