"""The head of a language model, apart from its body: what turns a state into logits, for any part of the tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimexp.model.base import Batch, Family

_PROBE = ("The quick brown fox jumps over the lazy dog.",) * 2  # any text: what is compared does not depend on it


@dataclass(frozen=True)
class Head:
    """A matrix product, and what a model does to every product of it: ``softcap tanh(scale x / softcap) + shift``.

    Attributes:
        module: The linear layer; its weight may be tied, masked or quantized.
        scale: Factor of the products (Cohere multiplies them, Granite divides).
        softcap: Largest absolute value of a logit (Gemma 2); ``None`` for no limit.
        shift: Added to the logits, [1, V] (BART's and Marian's ``final_logits_bias``); ``None`` for nothing.
    """

    module: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    shift: Tensor | None = None

    def logits(self, products: Tensor) -> Tensor:
        """Logits of the layer's products, both [..., V]; in float32 where anything is done to them."""
        if self.scale == 1.0 and self.softcap is None and self.shift is None:
            return products
        logits = products.float() * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.shift is None else logits + self.shift

    @contextmanager
    def left_out(self) -> Iterator[list[Tensor]]:
        """Within the context the model stops before the layer, whose inputs the list receives; logits mean nothing."""
        inputs: list[Tensor] = []

        def keep(states: Tensor) -> Tensor:
            inputs.append(states)
            return states.new_zeros(1, 1, 1)  # whatever is done to logits costs nothing

        with _forward(self.module, keep):
            yield inputs


def head_of(family: Family) -> Head | None:
    """The head of a model; ``None`` where logits are not one of a linear layer and what a ``Head`` knows.

    What the configuration says of it is held against what the model does to a range of products, so that nothing that
    a model may do in between is missed.
    """
    module = family.model.get_output_embeddings()
    if family.task == "classification" or not isinstance(module, nn.Linear) or not _is_plain(module):
        return None
    config = family.model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    head = Head(
        module,
        scale=scale / (getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
        shift=getattr(family.model, "final_logits_bias", None),
    )
    return head if _describes(head, family) else None


def states(
    family: Family, batch: Batch, head: Head, *, hidden: bool = False
) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
    """Inputs of the head, [B, T, D] aligned with the labels, and hidden states as ``Family.forward`` returns them."""
    with head.left_out() as inputs:
        _, of_blocks = family.forward(batch, hidden=hidden)
    return inputs[0], of_blocks


@torch.no_grad()
def _describes(head: Head, family: Family) -> bool:
    """Whether the model calls the layer once, and makes of its products the logits that ``head`` says."""
    batch = family.encode([(text, text, None) for text in _PROBE])
    batch = {name: tensor.to(family.device) for name, tensor in batch.items()}
    calls: list[Tensor] = []

    def probe(inputs: Tensor) -> Tensor:
        width = head.module.weight.shape[0]
        calls.append(torch.linspace(-60, 60, width, device=inputs.device).expand(*inputs.shape[:-1], width))
        return calls[-1]

    was_training = family.model.training
    family.model.eval()
    try:
        with _forward(head.module, probe), torch.compiler.set_stance("force_eager"):
            actual = family.forward(batch)[0]
    finally:
        family.model.train(was_training)
    if len(calls) != 1 or actual.shape != calls[0].shape or actual.shape[:-1] != batch["labels"].shape:
        return False
    return torch.allclose(actual.float(), head.logits(calls[0]).float(), rtol=1e-3, atol=1e-3)


def _is_plain(module: nn.Linear) -> bool:
    """Whether the layer is a product with ``weight``, as it is called: no kernel of its own, and no hooks."""
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    of_linear = getattr(type(module), "forward", None) is nn.Linear.forward and "forward" not in vars(module)
    return of_linear and not hooks and module.weight.is_floating_point()


@contextmanager
def _forward(module: nn.Module, function: object) -> Iterator[None]:
    """Replace ``forward`` of one module within the context."""
    module.forward = function  # type: ignore[assignment]
    try:
        yield
    finally:
        del module.forward
