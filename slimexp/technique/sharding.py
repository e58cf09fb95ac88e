"""FSDP2: every device holds a shard of every weight, and gathers one block at a time.

So a weight is whole within the forward pass alone. What reads weights between steps must gather them, as ``MaskUpdate``
does one layer at a time; a technique that cannot is refused by its ``whole_weights``.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from slimexp.host import process_group
from slimexp.model.base import Family
from slimexp.weight.shard import whole_parameter

FSDP = "fsdp"


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
    for module in sharded:
        module.reshard()
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
