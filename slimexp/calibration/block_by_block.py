"""Calibration block by block, each behind blocks that are pruned, smoothed or rounded already."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from slimexp.calibration.observe import Observer, Statistics, input_statistics, lent, undisturbed, visiting
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family, Weight
from slimexp.model.layer import Layer, check_finite, place
from slimexp.model.masks import as_recorded
from slimexp.weight.attachment import without_weight_attachments
from slimexp.weight.shared_class import computed_once

PROBE = 8  # tokens of the row that shows how blocks are wired
Wires = Mapping[str | int, int]  # argument of a block -> index of the output of the block before that it is


@dataclass(frozen=True)
class Call:
    """The arguments that a block is called with.

    Attributes:
        arguments: Position (an int) or name -> value.
    """

    arguments: Mapping[str | int, Any]

    @classmethod
    def of(cls, positional: Sequence[Any], named: Mapping[str, Any]) -> Self:
        arguments: dict[str | int, Any] = dict(enumerate(positional))
        arguments.update(named)
        return cls(arguments)

    def on(self, block: nn.Module) -> tuple[Any, ...]:
        """What the block returns, always as a tuple."""
        positional = [value for key, value in self.arguments.items() if isinstance(key, int)]
        named = {key: value for key, value in self.arguments.items() if isinstance(key, str)}
        output = block(*positional, **named)
        return output if isinstance(output, tuple) else (output,)

    def after(self, outputs: tuple[Any, ...], wires: Wires) -> "Call":
        """The call of the next block, given the ``outputs`` of this one."""
        return Call({**self.arguments, **{key: outputs[index] for key, index in wires.items()}})


class _Stop(Exception):
    """Ends a forward pass whose rest is not needed."""


@torch.no_grad()
def calibrate_blocks(
    observer: Observer,
    family: Family,
    layers: Mapping[str, Layer],
    batches: Sequence[Batch],
    *,
    device: torch.device,
    update: Callable[[Mapping[str, Tensor]], None],
) -> dict[str, int]:
    """Show ``observer`` the inputs of every block's layers, once all blocks before it are updated.

    As SparseGPT, Wanda and GPTQ are published: the inputs of the first block are caught, and handed from block to
    block. One block, its statistics and one hidden state per row are on ``device`` at a time; the rest stays where it
    is. Two exceptions take the whole model there, and a short row shows where they apply: a decoder is entered behind
    its encoder, and where blocks pass each other more than they return (a mask of its own for every other block, say),
    each block's inputs are those of a forward pass from the beginning.

    Args:
        observer: Importance, smoothing or rounding that observes inputs.
        family: The model; it is left where and as it was, but for what ``update`` changes.
        layers: The layers to observe, by name.
        batches: Training text without padding, on any device.
        device: Device to compute on.
        update: Receives layer -> statistic of one block, and changes the weights, masks or grids of these layers.

    Returns:
        Layer -> number of tokens that were observed of its inputs.

    Raises:
        ValueError: A layer was never used; a weight or an input is not finite.
    """
    tokens: dict[str, int] = {}
    with undisturbed(family):
        for position, blocks in enumerate(family.blocks().values()):
            stack = _Stack(observer, family, layers, list(blocks), update, tokens)
            wiring = stack.wiring(batches[0])
            if wiring is None:
                stack.from_the_beginning(batches, device)
                continue
            with visiting(family.model, device) if position else stack.without_blocks(device):  # behind an encoder
                calls = [stack.entry(batch) for batch in counted(batches, "input row")]
            stack.from_block_to_block(calls, wiring, device)
    return tokens


@dataclass(frozen=True)
class _Stack:
    """Blocks that follow each other."""

    observer: Observer
    family: Family
    layers: Mapping[str, Layer]
    blocks: Sequence[nn.Module]
    update: Callable[[Mapping[str, Tensor]], None]
    tokens: dict[str, int]

    def wiring(self, batch: Batch) -> list[Wires] | None:
        """Wires of every block but the first; arguments without a wire are those of the first block.

        ``None`` where blocks pass each other more than that. No weight is read, unless a block looks at values.
        """
        row = {name: x[:, :PROBE] if x.ndim > 1 else x for name, x in batch.items()}
        logger = logging.getLogger("torch._subclasses.fake_tensor")  # which prints what it then raises
        before, logger.disabled = logger.disabled, True
        try:
            latent = without_weight_attachments(self.family.model)
            with FakeTensorMode(allow_non_fake_inputs=True), latent, self._recording() as calls:
                self._forward(row)
        except Exception:  # a mixture that routes tokens, say
            with as_recorded(), self._recording() as calls:  # so few tokens need no masks, more may
                self._forward(row)
        finally:
            logger.disabled = before
        if [block for block, _, _ in calls] != list(self.blocks):
            return None
        first = calls[0][1]
        wiring = [_wires(first, call, outputs) for (_, _, outputs), (_, call, _) in pairwise(calls)]
        return None if None in wiring else wiring  # type: ignore[return-value]

    @contextmanager
    def _recording(self) -> Iterator[list[tuple[nn.Module, Call, tuple[Any, ...]]]]:
        """Calls of the blocks within the context, and what they returned."""
        calls: list[tuple[nn.Module, Call, tuple[Any, ...]]] = []

        def record(block: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            calls.append((block, Call.of(positional, named), output if isinstance(output, tuple) else (output,)))

        with ExitStack() as hooks:
            for block in self.blocks:
                hooks.callback(block.register_forward_hook(record, with_kwargs=True).remove)
            yield calls

    def entry(self, batch: Batch) -> Call:
        """The call of the first block for a batch."""
        caught: list[Call] = []

        def catch(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught.append(Call.of(positional, named))
            raise _Stop

        hook = self.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            with suppress(_Stop):
                self._forward(batch)
        finally:
            hook.remove()
        return caught[0]

    def from_block_to_block(self, calls: list[Call], wiring: Sequence[Wires], device: torch.device) -> None:
        """Run every batch through one block after the other; ``calls`` are replaced by those of the next block."""
        for block, wires in zip(counted(self.blocks, "block"), [*wiring, None], strict=True):
            with visiting(block, device):
                with self._observing(block) as statistics:
                    for statistics.batch, call in enumerate(counted(calls, "row")):
                        call.on(block)
                self._update(statistics)
                if wires is not None:
                    for row, call in enumerate(counted(calls, "output row")):
                        calls[row] = call.after(call.on(block), wires)

    def from_the_beginning(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Run every batch from the model's input to the end of each block in turn."""
        with visiting(self.family.model, device):
            for block in counted(self.blocks, "block"):
                with self._observing(block) as statistics, _ending(block):
                    for statistics.batch, batch in enumerate(counted(batches, "row")):
                        with suppress(_Stop):
                            self._forward(batch)
                self._update(statistics)

    @contextmanager
    def without_blocks(self, device: torch.device) -> Iterator[None]:
        """All of the model on ``device`` that is not within blocks."""
        inside = {module for stack in self.family.blocks().values() for module in stack.modules()}
        with lent([module for module in self.family.model.modules() if module not in inside], device):
            yield

    @contextmanager
    def _observing(self, block: nn.Module) -> Iterator[Statistics]:
        inside = set(block.modules())
        layers = {name: layer for name, layer in self.layers.items() if place(layer)[0] in inside}
        check_finite(layers)
        experts = any(isinstance(layer, Weight) and layer.expert is not None for layer in layers.values())
        once = computed_once() if experts else nullcontext()  # for all of a stack, which each would make anew
        with input_statistics(self.observer, layers) as statistics, once:
            yield statistics

    def _update(self, statistics: Statistics) -> None:
        if statistics.layers:
            self.update(statistics.complete())
            self.tokens.update(statistics.tokens)

    def _forward(self, batch: Batch) -> None:
        self.family.run({name: tensor.to(self.family.device) for name, tensor in batch.items()})


def _wires(first: Call, call: Call, outputs: tuple[Any, ...]) -> Wires | None:
    """Where the arguments of ``call`` come from, given what the block before it returned."""
    if first.arguments.keys() != call.arguments.keys():
        return None
    wires = {}
    for key, value in call.arguments.items():
        index = next((i for i, output in enumerate(outputs) if output is value and value is not None), None)
        if index is not None:
            wires[key] = index
        elif value is not first.arguments[key]:
            return None
    return wires


@contextmanager
def _ending(block: nn.Module) -> Iterator[None]:
    """Forward passes end where ``block`` does."""

    def end(*_: Any) -> None:
        raise _Stop

    hook = block.register_forward_hook(end)
    try:
        yield
    finally:
        hook.remove()
