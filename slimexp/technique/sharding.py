"""FSDP2: every device holds a shard of every weight, and gathers one block at a time.

So a weight is whole within the forward pass alone. What reads weights between steps must gather them, as ``MaskUpdate``
does one layer at a time; a technique that cannot is refused by its ``whole_weights``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedConfig

from slimexp.host import process_group
from slimexp.model.base import Batch, Family
from slimexp.technique import random_state
from slimexp.weight.shard import whole_parameter

FSDP = "fsdp"
_LAYERDROP = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # shares of steps in which a layer is left out
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # of mixtures of experts


class Distributed(pl.LightningModule):
    """A module that is trained on one device or several, each of which may hold a shard of the model and its teacher.

    Attributes:
        family: The model that is trained.
        teacher_family: Its teacher, if it has one.
        seed: Seed of the order of the data.
        dropout: Whether the model's dropout is active while it trains; before and after, it never is.
        losses: Name -> term of the objective.
        mapped: Whether weights are still as they lie in their files, which every process reads for itself.
    """

    family: Family
    teacher_family: Family | None
    seed: int
    dropout: bool
    losses: nn.ModuleDict
    mapped: bool = False
    _rng: Mapping[str, Any] | None
    _are_shards = False
    _is_split = False
    _divisor: Callable[[Tensor], Tensor] | None = None

    @property
    def idle_parameters(self) -> bool:
        """Whether there may be steps in which trained parameters have no gradient: experts without tokens, say."""
        return self.drops_layers(self.family.model.config) or _has_some(self.family.model.config, _EXPERTS)

    def drops_layers(self, config: PreTrainedConfig) -> bool:
        """Whether every step of a model of ``config`` leaves out layers, which each device draws for itself."""
        return self.dropout and _has_some(config, _LAYERDROP)

    @property
    def whole_weights(self) -> str | None:
        """Why it needs whole weights between steps, where a device may hold shards of them; ``None`` if it does not."""
        return None

    @property
    def whole_losses(self) -> str | None:
        """Why its losses cannot be trained beside shards; ``None`` if they can."""
        learned = [name for name, loss in self.losses.items() if loss.learns]
        return f"whose loss {learned[0]} learns parameters, which are in no shard" if learned else None

    @contextmanager
    def split(self) -> Iterator[None]:
        """The batch in the context is this device's share of one; elsewhere every device computes on the same rows."""
        self._is_split = True
        try:
            yield
        finally:
            self._is_split = False

    def shared_denominator(self, denominator: Tensor) -> Tensor:
        """What a numerator on this device is divided by, so that the mean over devices is the quotient of the sums.

        A mean of the devices' own means would weigh labels by how many their device happens to have.
        """
        if self._divisor is not None:
            return self._divisor(denominator)
        return process_group.all_reduce(denominator) / process_group.size() if self._is_split else denominator

    @contextmanager
    def divided_by(self, divisor: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within the context, ``divisor`` says what a numerator is divided by, and no other device is asked."""
        self._divisor = divisor
        try:
            yield
        finally:
            self._divisor = None

    def means(self, scalars: Sequence[Tensor]) -> list[Tensor]:
        """Means over the devices."""
        if process_group.size() == 1:
            return list(scalars)
        return list(process_group.all_reduce(torch.stack(list(scalars)).float()) / process_group.size())

    def configure_model(self) -> None:
        """Shard model and teacher, where the strategy asks for it."""
        if self.device_mesh is None or self._are_shards:
            return
        tensors = [*self.parameters(), *self.buffers()] if not self.mapped else [*self.buffers()]
        process_group.broadcast(tensor for tensor in tensors if not tensor.is_meta)  # each process shards what it holds
        low_precision = self.trainer.precision == "bf16-mixed"
        for family in (self.family, self.teacher_family):
            if family is not None:
                dtype = torch.bfloat16 if low_precision and family is self.teacher_family else torch.float32
                shard(family, self.device_mesh["data_parallel"], dtype=dtype, low_precision=low_precision)
        self._are_shards = True

    def broadcast_buffers(self) -> None:
        """Take over the first process's buffers, such as masks; parameters are the strategy's to share."""
        if not self._are_shards:
            process_group.broadcast(self.buffers())

    def start_random_state(self) -> None:
        """Have each device but the first draw numbers of its own, where no checkpoint holds them."""
        self._rng = getattr(self, "_rng", {} if process_group.rank() else None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint["rng"]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout goes on where the checkpoint left it (restored here because starting a loader draws numbers)."""
        if (rng := self.__dict__.pop("_rng", None)) is not None:
            random_state.restore(rng, self.device, seed=[self.seed, self.global_step])

    def gather(self) -> None:
        """Make the model whole again after training: in the first process; the others are left an outline of it."""
        if self._are_shards:
            gather(self.family.model)
            self._are_shards = False


def _has_some(config: PreTrainedConfig, settings: Sequence[str]) -> bool:
    return any(getattr(config, name, None) for name in settings)


def shard(family: Family, mesh: DeviceMesh, *, dtype: torch.dtype, low_precision: bool) -> None:
    """Shard the model of ``family`` in place, block by block.

    Weights that are mapped from their files are copied one block at a time, of which a process keeps its shard.

    Args:
        family: The model, the same in all processes.
        mesh: The devices.
        dtype: Type of the shards.
        low_precision: Whether weights are gathered, and computed with, in bfloat16; gradients are summed in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    settings: dict[str, Any] = {"mp_policy": policy} if low_precision else {}
    for stack in family.blocks().values():
        for block in stack:
            fully_shard(block.to(dtype), mesh=mesh, **settings)
    fully_shard(nn.Module.to(family.model, dtype), mesh=mesh)  # embeddings in float32, so that what blocks add to is


def gather(model: nn.Module) -> None:
    """Undo ``shard``: the first process holds the whole model on the CPU again, the others an outline of it."""
    keep = process_group.is_first()
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for fsdp_module in sharded:
        fsdp_module.reshard()
    gathered: dict[nn.Parameter, nn.Parameter] = {}  # tied ones are gathered once
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if parameter not in gathered:
                    gathered[parameter] = whole_parameter(parameter, keep=keep)
                module._parameters[name] = gathered[parameter]
        for name, buffer in list(module._buffers.items()):  # masks and grids are computed with beside the parameters
            if buffer is not None:
                module._buffers[name] = buffer.cpu()
    for fsdp_module in sharded:
        _without_hooks(fsdp_module)


def _without_hooks(module: nn.Module) -> None:
    """Make of a module of FSDP's the plain one that it was."""
    state = module._get_fsdp_state()  # type: ignore[operator]
    for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        handle.remove()
    module.__class__ = type(module).__mro__[2]
