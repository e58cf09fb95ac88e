"""Transformer blocks through ``torch.compile``, one at a time: what is compiled once serves every block of a kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn

from slimexp.model.base import Family

# Blocks of student and teacher, first ones and others, with gradient and without, are variants of one function.
_VARIANTS = 64


@contextmanager
def blocks_compiled(*families: Family) -> Iterator[None]:
    """Compile ``forward`` of every block of the models within the context; hooks on blocks stay outside of it.

    The position of a block in its stack (``layer_idx``) is no constant to the compiler, or it would compile each anew.
    """
    blocks = [block for family in families for stack in family.blocks().values() for block in stack]
    functions = {kind: torch.compile(kind.forward) for kind in {type(block) for block in blocks}}
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True, recompile_limit=_VARIANTS):
        for block in blocks:
            block.forward = MethodType(functions[type(block)], block)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward


def can_share(family: Family) -> bool:
    """Whether blocks of a kind are alike to the compiler; a parametrized layer is of a class of its own."""
    modules = (module for stack in family.blocks().values() for module in stack.modules())
    return not any(nn.utils.parametrize.is_parametrized(module) for module in modules)
