"""What a CUDA graph has fixed of the modules that it was recorded from."""

from collections.abc import Hashable, Iterable
from typing import Any

from torch import nn

from slimexp.weight.attachment import Attachment


class RecordedState:
    """What recordings of some modules depend on: where their tensors lie, and how their attachments are set."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        inside = list(dict.fromkeys(module for root in modules for module in root.modules()))
        tensors = ((held, name) for module in inside for held in (module._parameters, module._buffers) for name in held)
        self._tensors: list[tuple[dict[str, Any], str]] = list(tensors)
        set_up = [*modules, *(module for module in inside if isinstance(module, Attachment))]
        self._settings = [
            (vars(module), name)
            for module in set_up
            for name, value in vars(module).items()
            if isinstance(value, bool | int | float | str | None) and not name.startswith("_")
        ]

    def now(self) -> Hashable:
        """Equal to that of another time where recordings of then hold."""
        tensors = (held[name] for held, name in self._tensors)
        places = tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)
        return places, tuple(values[name] for values, name in self._settings)

    def kept(self) -> list[Any]:
        """The tensors and settings themselves."""
        return [held[name] for held, name in (*self._tensors, *self._settings)]

    def bring_back(self, kept: Iterable[Any]) -> None:
        """Undo what was done to the modules since."""
        for (held, name), value in zip((*self._tensors, *self._settings), kept, strict=True):
            held[name] = value
