"""Running a model as if parts of it were removed: what ``surgery.remove`` will give, without building it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slimexp.cut.architecture import FFN, HEADS, HIDDEN, anatomy_of, scope
from slimexp.cut.constraints import Kept
from slimexp.cut.shape import readers, writers
from slimexp.model.base import Family


@contextmanager
def rehearsed(family: Family, layers: Mapping[str, Sequence[int]], kept: Mapping[str, Kept]) -> Iterator[None]:
    """Within this, the model computes what ``remove(family, layers, kept)`` would, up to rounding.

    Args:
        family: The model; its weights are not touched.
        layers: Stack -> indices of its blocks that take part; every stack of the model.
        kept: Axis -> scope -> indices that take part, as ``remove`` takes them.
    """
    model = family.model
    with ExitStack() as stack:
        for axis in (HEADS, FFN):  # masked where they are read; key/value heads that no query head reads do nothing
            if axis in kept:
                for reader, mask in _read_masks(model, axis, kept[axis]):
                    stack.callback(reader.register_forward_pre_hook(partial(_mask_input, mask)).remove)
        if HIDDEN in kept:
            mask = _mask(model.get_input_embeddings().embedding_dim, kept[HIDDEN][""], model)  # type: ignore[arg-type]
            for writer in writers(model, HIDDEN):
                stack.callback(writer.register_forward_hook(partial(_mask_output, mask)).remove)
        for name, blocks in family.blocks().items():  # last, for it gives blocks new names
            stack.enter_context(_only(blocks, layers[name]))
        yield


@contextmanager
def _only(blocks: nn.ModuleList, indices: Sequence[int]) -> Iterator[None]:
    every = blocks._modules
    blocks._modules = {str(new): every[str(old)] for new, old in enumerate(indices)}
    try:
        yield
    finally:
        blocks._modules = every


def _read_masks(model: PreTrainedModel, axis: str, kept: Kept) -> Iterator[tuple[nn.Module, Tensor]]:
    anatomy = anatomy_of(model.config)
    for name, reader in readers(model, axis).items():
        length = reader.get_parameter("weight").shape[0 if isinstance(reader, Conv1D) else 1]
        yield reader, _mask(length, kept[scope(name, axis, anatomy)], model)


def _mask(length: int, indices: Tensor, model: PreTrainedModel) -> Tensor:
    mask = torch.zeros(length, device=model.device, dtype=model.dtype)
    mask[indices.to(model.device)] = 1
    return mask


def _mask_input(mask: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (inputs[0] * mask, *inputs[1:])


def _mask_output(mask: Tensor, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output * mask
