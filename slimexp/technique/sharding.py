"""FSDP2: every device holds a shard of every weight, and gathers one block at a time.

So a weight is whole within the forward pass alone. What reads weights between steps must gather them, as ``MaskUpdate``
does one layer at a time; a technique that cannot is refused by its ``whole_weights``.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from slimexp.host import process_group
from slimexp.model.base import Family
from slimexp.weight.shard import whole_parameter

FSDP = "fsdp"
# Settings of models that are mixtures of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class Sharded(pl.LightningModule):
    """A module whose model and teacher each of several devices may hold a shard of, as the strategy has it.

    Attributes:
        family: The model that is trained.
        teacher_family: Its teacher, if it has one.
    """

    family: Family
    teacher_family: Family | None
    _are_shards = False

    @property
    def idle_parameters(self) -> bool:
        """Whether there may be steps in which trained parameters have no gradient: experts that no token goes to."""
        return any(getattr(self.family.model.config, name, None) for name in _EXPERTS)

    @property
    def whole_weights(self) -> str | None:
        """Why it needs whole weights between steps, where a device may hold shards of them; ``None`` if it does not."""
        return None

    def configure_model(self) -> None:
        """Shard model and teacher, where the strategy asks for it."""
        if self.device_mesh is None or self._are_shards:
            return
        tensors = [*self.parameters(), *self.buffers()]
        process_group.share(tensor for tensor in tensors if not tensor.is_meta)  # each process shards what it holds
        low_precision = self.trainer.precision == "bf16-mixed"
        for family in (self.family, self.teacher_family):
            if family is not None:
                shard(family, self.device_mesh["data_parallel"], low_precision=low_precision)
        self._are_shards = True

    def share_buffers(self) -> None:
        """Take over the first process's buffers, such as masks; parameters are the strategy's to share."""
        if not self._are_shards:
            process_group.share(self.buffers())

    def gather(self) -> None:
        """Make the model whole again after training: in the first process; the others are left an outline of it."""
        if self._are_shards:
            gather(self.family.model)
            self._are_shards = False


def shard(family: Family, mesh: DeviceMesh, *, low_precision: bool) -> None:
    """Shard the model of ``family`` in place, block by block.

    Args:
        family: The model, the same in all processes.
        mesh: The devices.
        low_precision: Whether weights are gathered, and computed with, in bfloat16; gradients are summed in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    settings: dict[str, Any] = {"mp_policy": policy} if low_precision else {}
    for stack in family.blocks().values():
        for block in stack:
            fully_shard(block, mesh=mesh, **settings)
    fully_shard(family.model, mesh=mesh)  # embeddings in float32, so that what blocks add to is


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
    for fsdp_module in sharded:
        _without_hooks(fsdp_module)


def _without_hooks(module: nn.Module) -> None:
    """Make of a module of FSDP's the plain one that it was."""
    state = module._get_fsdp_state()  # type: ignore[operator]
    for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        handle.remove()
    module.__class__ = type(module).__mro__[2]
