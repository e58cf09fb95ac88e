"""Transformer blocks through ``torch.compile``, one at a time: what is compiled once serves every block of a kind.

Masks, quantizers and gates on a block's layers are compiled with it: what is eight kernels for every weight becomes
one. Their tensors are inputs of what is compiled and may change in place; where a switch of theirs is flipped, or a
grid is fixed, blocks are compiled anew.
"""

import logging
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType

import torch
from torch import nn

from slimexp.file.bounded import one_line
from slimexp.model.base import Family
from slimexp.model.cache import rounds_cache
from slimexp.quantizer.base import Quantizer
from slimexp.weight.attachment import INPUT, attached
from slimexp.weight.shared_class import classes_shared

# Blocks of student and teacher, first ones and others, with gradient and without, are variants of one function.
_VARIANTS = 64

_LOGGER = "torch._dynamo.convert_frame"


@contextmanager
def blocks_compiled(*families: Family, without: Collection[nn.Module] = ()) -> Iterator[None]:
    """Compile ``forward`` of every block of the models within the context; hooks on blocks stay outside of it.

    Blocks ``without`` run as they are, so that hooks may see what is computed in them.

    The position of a block in its stack (``layer_idx``) is no constant to the compiler, or it would compile each anew.
    What the compiler fails on runs without it, which a line says.
    """
    for why in {why for family in families if (why := refusal(family)) is not None}:
        print(f"  not compiled, so slower: {why}")
    families = tuple(family for family in families if refusal(family) is None)
    blocks = [block for family in families for stack in family.blocks().values() for block in stack]
    blocks = [block for block in blocks if block not in without]
    functions = {kind: torch.compile(kind.forward) for kind in {type(block) for block in blocks}}
    settings = {"allow_unspec_int_on_nn_module": True, "recompile_limit": _VARIANTS, "suppress_errors": True}
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(settings))
        stack.enter_context(torch._inductor.config.patch(_numerics(families)))
        stack.enter_context(_failures_in_a_line())
        stack.enter_context(classes_shared(blocks))
        for block in blocks:
            block.forward = MethodType(functions[type(block)], block)
            stack.callback(delattr, block, "forward")
        yield


def refusal(family: Family) -> str | None:
    """Why blocks of a model cannot be compiled; ``None`` where they can."""
    if rounds_cache(family.model):
        return "a model that rounds keys and values has a new cache in every step, a constant to the compiler"
    if any(isinstance(item, Quantizer) and not item.compiles for _, item in attached(family.model)):
        return "torch 2.11 compiles the gradients of quantizers that learn their range or steps (LSQ, PACT) to zeros"
    return None


def kinds(family: Family) -> int:
    """Number of kinds of blocks that are unlike to the compiler: those that differ in more than their numbers."""
    return len({_kind(block) for stack in family.blocks().values() for block in stack})


def _kind(block: nn.Module) -> Hashable:
    """What is constant to the compiler in a block."""
    shapes = tuple((name, parameter.shape) for name, parameter in block.named_parameters())
    settings = tuple((place, type(attachment), repr(attachment.arguments())) for place, attachment in attached(block))
    return type(block), shapes, settings


def _numerics(families: Sequence[Family]) -> dict[str, bool]:
    """Settings with which a number is rounded to the same side as without a compiler, and as when it is deployed.

    Kernels would else divide with an error of two units in the last place, and keep rounded activations in more digits
    than their type has.
    """
    places = [place for family in families for place, _ in attached(family.model)]
    wanted = {
        "eager_numerics.division_rounding": bool(places),
        "emulate_precision_casts": any(place.tensor == INPUT for place in places),
    }
    known = torch._inductor.config.get_config_copy()  # other versions of torch may lack one
    return {name: True for name, on in wanted.items() if on and name in known}


@contextmanager
def _failures_in_a_line() -> Iterator[None]:
    """What the compiler fails on is one line, the first time, in place of a traceback each."""
    seen: set[str] = set()

    def shortened(record: logging.LogRecord) -> bool:
        if record.exc_info is None or record.exc_info[1] is None:
            return True
        error = getattr(record.exc_info[1], "inner_exception", record.exc_info[1])
        why = one_line(error, most=200)
        if not seen:
            print(f"  not compiled, so slower: {type(error).__name__}: {why}")
        seen.add(why)
        return False

    logger = logging.getLogger(_LOGGER)
    logger.addFilter(shortened)
    try:
        yield
    finally:
        logger.removeFilter(shortened)
