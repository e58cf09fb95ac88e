"""Blocks whose activations are computed anew in the backward pass, which then keep their inputs alone.

Chen et al. 2016, "Training deep nets with sublinear memory cost", section 4: memory of a block's activations is that of
one block, not of all, for a second forward pass. Models of transformers can do so themselves, but not in eval mode,
in which a model without dropout is trained.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from slimexp.model.base import Family


@contextmanager
def blocks_recomputed(family: Family) -> Iterator[None]:
    """Compute the activations within blocks of a model anew in backward; hooks on blocks stay outside of it.

    Dropout draws the same numbers again. Blocks that go through a compiler must do so already: what is computed anew is
    the compiled block.
    """
    with ExitStack() as stack:
        for block in (block for blocks in family.blocks().values() for block in blocks):
            own = vars(block).get("forward")
            stack.callback(_restore, block, own)
            block.forward = partial(_forward, block.forward)
        yield


def _forward(forward: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **more)
    return checkpoint(forward, *inputs, use_reentrant=False, **more)


def _restore(block: torch.nn.Module, forward: Any) -> None:
    if forward is None:
        del block.forward
    else:
        block.forward = forward
