"""Simulated removal: running a model with units masked and blocks skipped, as the smaller model of ``remove`` would."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slimexp.architecture.base import EXPERT_FFN, EXPERTS, FFN, HEADS, HIDDEN, KV_HEADS
from slimexp.cut.block_lists import only_blocks
from slimexp.cut.constraints import ScopeIndices
from slimexp.cut.expert_use import mixtures, scope_of
from slimexp.cut.low_rank import Maps, in_place
from slimexp.cut.remove import retained_entries
from slimexp.cut.shape import norms, readers, writers
from slimexp.model.base import Family
from slimexp.model.experts import DOWN


@contextmanager
def simulated(
    family: Family,
    layers: Mapping[str, Sequence[int]],
    retained: Mapping[str, ScopeIndices],
    maps: Maps | None = None,
) -> Iterator[None]:
    """A context in which the model computes what ``remove`` of the same arguments would, up to rounding.

    Args:
        family: The model; its weights stay unchanged.
        layers: Stack -> indices of the blocks retained, ascending; every stack of the model.
        retained: Axis -> scope -> indices retained, as ``remove`` takes them.
        maps: What is in the place of attention or feed-forward layers, as ``remove`` takes it.
    """
    model = family.model
    with ExitStack() as stack:
        stack.enter_context(in_place(model, maps or {}))  # first: what reads and writes units is another then
        for axis in (HEADS, FFN, EXPERT_FFN):  # masked at their readers; key/value heads without a query have no effect
            if axis in retained:
                for reader, mask in _read_masks(model, readers(model, axis), axis, retained):
                    stack.callback(reader.register_forward_pre_hook(partial(_mask_input, mask)).remove)
        for axis in (HEADS, KV_HEADS):  # but for norms, which average over all heads
            if axis in retained:
                for norm, mask in _read_masks(model, norms(model, axis), axis, retained):
                    stack.callback(norm.register_forward_pre_hook(partial(_mask_input, mask)).remove)
        if HIDDEN in retained:
            mask = _mask(model.get_input_embeddings().embedding_dim, retained[HIDDEN][""], model)  # type: ignore[arg-type]
            for writer in writers(model, HIDDEN):
                stack.callback(writer.register_forward_hook(partial(_mask_output, mask)).remove)
        for name in mixtures(family) if EXPERTS in retained else ():
            router = model.get_submodule(f"{name.rpartition('.')[0]}.gate")
            part = scope_of(family, name)
            stack.enter_context(_choosing_between(router, retained[EXPERTS][part if part in retained[EXPERTS] else ""]))
        for name, experts in mixtures(family).items() if EXPERT_FFN in retained else ():
            kept = retained_entries(EXPERT_FFN, f"{name}.{DOWN}", model.config, {EXPERT_FFN: retained[EXPERT_FFN]})
            assert kept is not None
            stack.enter_context(_without_neurons(experts, kept))
        for name, blocks in family.blocks().items():  # last, as it renames blocks
            stack.enter_context(_only(blocks, layers[name]))
            stack.enter_context(only_blocks(model.config, layers[name]))
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


@contextmanager
def _choosing_between(router: Any, experts: Tensor) -> Iterator[None]:
    """A context in which a router has rows for some experts alone, and still calls them by their own indices."""
    weight = router.get_parameter("weight")
    count, kept = len(weight), experts.to(weight.device)
    tables = [(held, name) for held in (router._parameters, router._buffers) for name in held]
    before = {name: held[name] for held, name in tables}
    hook = router.register_forward_hook(lambda _, __, output: (*output[:-1], kept[output[-1]]))
    try:
        router.num_experts = len(kept)
        for held, name in tables:
            table = before[name]
            if table is not None and len(table) == count:
                held[name] = type(table)(table.detach()[kept]) if isinstance(table, nn.Parameter) else table[kept]
        yield
    finally:
        hook.remove()
        router.num_experts = count
        for held, name in tables:
            held[name] = before[name]


@contextmanager
def _without_neurons(experts: Any, kept: Tensor) -> Iterator[None]:
    """A context in which no expert reads other neurons than its own of ``kept``, [experts, n]."""
    down = experts.get_parameter(DOWN).detach().mT  # [experts, neurons, hidden], the weight's own memory
    silent = torch.ones(down.shape[:2], dtype=torch.bool, device=down.device).scatter_(1, kept.to(down.device), False)
    before = down[silent]  # these alone are copied: in a real mixture all experts are most of the memory
    down[silent] = 0
    try:
        yield
    finally:
        down[silent] = before


def _read_masks(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], axis: str, retained: Mapping[str, ScopeIndices]
) -> Iterator[tuple[nn.Module, Tensor]]:
    """Those of ``modules``, which read ``axis``, that lose some of their input, with its mask, [in]."""
    for name, module in modules.items():
        length = module.get_parameter("weight").shape[-1 if not isinstance(module, Conv1D) else 0]
        indices = retained_entries(axis, f"{name}.weight", model.config, retained)
        assert indices is not None
        if len(indices) < length:
            yield module, _mask(length, indices, model)


def _mask(length: int, indices: Tensor, model: PreTrainedModel) -> Tensor:
    """1 at ``indices`` and 0 elsewhere, [length], of the model's type and device."""
    mask = torch.zeros(length, device=model.device, dtype=model.dtype)
    mask[indices.to(model.device)] = 1
    return mask


def _mask_input(mask: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (inputs[0] * mask, *inputs[1:])


def _mask_output(mask: Tensor, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output * mask
