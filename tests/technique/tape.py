"""What a CUDA graph does, on a CPU: operations are noted, undone, and done anew on the same tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Tape(TorchDispatchMode):
    """Notes operations. Numbers of the host are constants of it; reading a number of a tensor is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.own: set[int] = set()  # memory that came to be while it was noted
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what was written to that is older, and its values

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        chosen = tree_leaves(args[1:]) if function is torch.ops.aten.index.Tensor else []
        if any(word in str(function) for word in _WAITS) or any(
            x is not None and x.dtype == torch.bool for x in chosen
        ):
            raise RuntimeError(f"{function} waits for what is only noted")
        written = [
            tensor
            for argument, value in zip(function._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tree_leaves(value)
            if isinstance(tensor, Tensor)
        ]
        for tensor in written:
            (place,) = _memory(tensor)
            if place not in self.own and place not in self.before:
                self.before[place] = tensor, tensor.clone()
        result = function(*args, **kwargs)
        self.own |= _memory(result) - _memory((args, kwargs))
        self.operations.append((function, args, kwargs, result))
        return result

    def undo(self) -> None:
        for tensor, values in self.before.values():
            tensor.copy_(values)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.operations:
            inputs = _memory((args, kwargs))
            anew = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(anew), strict=True):
                if isinstance(old, Tensor) and not _memory(old) <= inputs:
                    old.copy_(new)


def _memory(tree: Any) -> set[int]:
    """Where the tensors of a tree lie; views lie where what they are views of does."""
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


class TapeRecorder:
    """In place of ``CudaRecorder``; counts replays."""

    replays = 0
    recordings = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        state = torch.get_rng_state()
        with Tape() as tape:
            result = work()
        with torch.no_grad():
            tape.undo()
        torch.set_rng_state(state)
        type(self).recordings += 1

        def replay() -> None:
            type(self).replays += 1
            tape.replay()

        return replay, result
