"""Passes that begin behind blocks which did not change: what those returned before is returned again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree

from slimexp.model.base import Family


class Replay:
    """Outputs of blocks of a model whose weights are as they were, one of each stack and batch.

    To change one block after another, from first to last, then takes half of the passes' work.

    Args:
        family: The model.
    """

    def __init__(self, family: Family) -> None:
        self._stacks = [list(blocks) for blocks in family.blocks().values()]
        self._kept: dict[tuple[int, int], tuple[int, Any]] = {}  # batch and stack -> a block's index and its output

    @contextmanager
    def behind(self, start: nn.Module | None, batch: int) -> Iterator[None]:
        """A context in which a pass runs no block before one, but for those since the last time.

        Args:
            start: The first block that changed; ``None`` for a pass that runs all.
            batch: Index of the batch, always of the same values.
        """
        with ExitStack() as changes:
            for number, before in enumerate(self._before(start)):
                if before:
                    changes.enter_context(self._replayed(before, (batch, number)))
            yield

    def _before(self, start: nn.Module | None) -> list[list[nn.Module]]:
        """Blocks of each stack that run before one."""
        for number, blocks in enumerate(self._stacks):
            if start in blocks:
                return [*self._stacks[:number], blocks[: blocks.index(start)]]
        return []

    @contextmanager
    def _replayed(self, blocks: Sequence[nn.Module], place: tuple[int, int]) -> Iterator[None]:
        """The output of the last of some blocks is kept; those up to one whose output is there do not run."""
        last = len(blocks) - 1
        known, output = self._kept.get(place, (-1, None))
        known = known if known <= last else -1
        silent = blocks[: known + 1]

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._kept[place] = last, _copied(output)

        own = [vars(block).get("forward") for block in silent]  # what else has replaced the class's
        hook = blocks[last].register_forward_hook(keep) if known < last else None
        try:
            for block in silent:  # the inputs of all but the last do not count
                block.forward = lambda *_, **__: _copied(output)
            yield
        finally:
            for block, forward in zip(silent, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward
            if hook is not None:
                hook.remove()


def _copied(output: Any) -> Any:
    """The output of a block, which later ones may write to."""
    return _pytree.tree_map_only(Tensor, Tensor.clone, output)
