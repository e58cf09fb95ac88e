"""Small modules that sit on a weight or on a layer's input, and stay there from stage to stage.

A mask and a fake-quantizer are attachments: on a weight they are torch parametrizations (so they
stack: quantizer over mask over weight), on an input they are forward pre-hooks. An artifact stores
their class and arguments, and puts them back when the next stage loads it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

INPUT = "input"
_INPUT_MODULE = "input_attachment"


class Attachment(nn.Module, ABC):
    """A tensor -> tensor module of unchanged shape. All state lives in buffers or parameters."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """JSON-able constructor arguments that rebuild this attachment (its tensors come from the state dict)."""


@dataclass(frozen=True)
class Place:
    """Where an attachment sits.

    Attributes:
        module: Name of the module in the model.
        tensor: Name of the parameter on it, such as ``weight``, or ``input``.
    """

    module: str
    tensor: str


def attach(module: nn.Module, tensor: str, attachment: Attachment, *, tried: bool = False) -> None:
    """Put ``attachment`` on ``module.<tensor>``, over those already there, or on the module's input.

    Args:
        module: Holds the tensor.
        tensor: Name of a parameter, or ``input``.
        attachment: What is put there.
        tried: Whether a weight is computed once, to see that the attachment fits it, which takes as long as that takes.

    Raises:
        ValueError: The input carries an attachment already.
    """
    if tensor != INPUT:
        parametrize.register_parametrization(module, tensor, attachment, unsafe=not tried)
        return
    if hasattr(module, _INPUT_MODULE):
        raise ValueError(f"the input of {module} carries an attachment already")
    module.add_module(_INPUT_MODULE, attachment)
    module.register_forward_pre_hook(_through_input_attachment)


def attached(model: nn.Module) -> Iterator[tuple[Place, Attachment]]:
    """Every attachment of ``model``, in the order in which they apply."""
    for name, module in model.named_modules():
        for tensor, chain in getattr(module, "parametrizations", {}).items():
            for attachment in chain:
                if isinstance(attachment, Attachment):
                    yield Place(name, tensor), attachment
        if isinstance(attachment := getattr(module, _INPUT_MODULE, None), Attachment):
            yield Place(name, INPUT), attachment


@contextmanager
def without_weight_attachments(model: nn.Module) -> Iterator[None]:
    """Let layers see their latent weights within the context, for a pass in which values do not matter.

    A fake pass (``FakeTensorMode``) would compute the product of a real weight and a real mask in earnest.
    """
    chains = [module for module in model.modules() if isinstance(module, parametrize.ParametrizationList)]
    try:
        for chain in chains:
            chain.forward = partial(getattr, chain, "original")  # type: ignore[method-assign]
        yield
    finally:
        for chain in chains:
            vars(chain).pop("forward", None)


def check_bare(model: nn.Module) -> None:
    """Refuse a model that carries attachments, where parts of it are to be taken out.

    Raises:
        ValueError: It carries one; names it.
    """
    for place, attachment in attached(model):
        raise ValueError(
            f"removal comes first: the model has masks or quantizers ({type(attachment).__name__} on "
            f"'{place.module}'), which would not survive it"
        )


def _through_input_attachment(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (getattr(module, _INPUT_MODULE)(inputs[0]), *inputs[1:])
