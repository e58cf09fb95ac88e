"""Simulated removal: running a model with units masked and blocks skipped, as the smaller model of ``remove`` would."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slimexp.cut.architecture import FFN, HEADS, HIDDEN, architecture_of, scope
from slimexp.cut.constraints import ScopeIndices
from slimexp.cut.shape import readers, writers
from slimexp.model.base import Family


@contextmanager
def simulated(
    family: Family, layers: Mapping[str, Sequence[int]], retained: Mapping[str, ScopeIndices]
) -> Iterator[None]:
    """A context in which the model computes what ``remove(family, layers, retained)`` would, up to rounding.

    Args:
        family: The model; its weights stay unchanged.
        layers: Stack -> indices of the blocks retained, ascending; every stack of the model.
        retained: Axis -> scope -> indices retained, as ``remove`` takes them.
    """
    model = family.model
    with ExitStack() as stack:
        for axis in (HEADS, FFN):  # masked at their readers; key/value heads without a query head have no effect
            if axis in retained:
                for reader, mask in _read_masks(model, axis, retained[axis]):
                    stack.callback(reader.register_forward_pre_hook(partial(_mask_input, mask)).remove)
        if HIDDEN in retained:
            mask = _mask(model.get_input_embeddings().embedding_dim, retained[HIDDEN][""], model)  # type: ignore[arg-type]
            for writer in writers(model, HIDDEN):
                stack.callback(writer.register_forward_hook(partial(_mask_output, mask)).remove)
        for name, blocks in family.blocks().items():  # last, as it renames blocks
            stack.enter_context(_only(blocks, layers[name]))
        yield


@contextmanager
def _only(blocks: nn.ModuleList, indices: Sequence[int]) -> Iterator[None]:
    """A context in which the list holds the blocks ``indices`` alone."""
    every = blocks._modules
    blocks._modules = {str(new): every[str(old)] for new, old in enumerate(indices)}
    try:
        yield
    finally:
        blocks._modules = every


def _read_masks(model: PreTrainedModel, axis: str, retained: ScopeIndices) -> Iterator[tuple[nn.Module, Tensor]]:
    """Every layer that reads ``axis``, with the mask of its input, [in]."""
    architecture = architecture_of(model.config)
    for name, reader in readers(model, axis).items():
        length = reader.get_parameter("weight").shape[0 if isinstance(reader, Conv1D) else 1]
        yield reader, _mask(length, retained[scope(name, axis, architecture)], model)


def _mask(length: int, indices: Tensor, model: PreTrainedModel) -> Tensor:
    """1 at ``indices`` and 0 elsewhere, [length], of the model's type and device."""
    mask = torch.zeros(length, device=model.device, dtype=model.dtype)
    mask[indices.to(model.device)] = 1
    return mask


def _mask_input(mask: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (inputs[0] * mask, *inputs[1:])


def _mask_output(mask: Tensor, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output * mask
