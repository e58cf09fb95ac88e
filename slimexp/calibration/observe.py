"""Showing an importance what it observes: the inputs of layers, or the gradients of weights, over training rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from slimexp.importance.base import Calibrated, Importance
from slimexp.model.base import Batch, Family
from slimexp.model.cache import float_cache
from slimexp.model.layer import Layer, latent, matrix, place


class Observer(Protocol):
    """Whoever is calibrated: an importance, a smoothing, a rounding.

    Attributes:
        rows: Training rows it reads.
    """

    rows: int

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """What it makes of one row, for a weight [out, in] and the layer's inputs [N, in], or the weight's gradient."""

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """What it makes of rows together; may write to ``total``."""


class Statistics:
    """Layer -> what the observer made of all rows.

    Args:
        importance: Makes numbers of what it is shown.
        layers: The layers, by name.
    """

    def __init__(self, importance: Observer, layers: Mapping[str, Layer]) -> None:
        self.importance = importance
        self.layers = layers
        self.batch = 0  # which is being shown, for messages
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, observed: Tensor) -> None:
        """What was observed of a layer in this batch.

        Raises:
            ValueError: It holds NaN or infinity.
        """
        if not observed.isfinite().all():
            raise ValueError(
                f"layer '{name}': what {type(self.importance).__name__} observes of it holds NaN or infinity in "
                f"calibration batch {self.batch}"
            )
        layer = self.layers[name]
        part = self.importance.observe(matrix(layer, latent(layer).detach()), observed.detach())
        self._sums[name] = self.importance.merge(self._sums[name], part) if name in self._sums else part

    def complete(self) -> dict[str, Tensor]:
        """The sums.

        Raises:
            ValueError: A layer was never used (an expert that no token went to, say).
        """
        if unseen := self.layers.keys() - self._sums.keys():
            raise ValueError(
                f"layer '{min(unseen)}' had no part in the {self.importance.rows} rows that "
                f"{type(self.importance).__name__} was calibrated on: raise importance.rows if no token went to that "
                "expert, else exclude the layer"
            )
        return self._sums


def observes_inputs(importance: Importance) -> bool:
    """Whether an importance is calibrated on the inputs of layers."""
    return isinstance(importance, Calibrated) and importance.observes == "input"


def check_called(outline: Family, layers: Mapping[str, Layer]) -> None:
    """Refuse layers whose weight the model multiplies itself: their inputs do not show, and no kernel can replace them.

    Mamba does so with ``dt_proj``. The model runs once on the meta device; one whose way depends on numbers (a mixture
    that routes tokens) does not run there, and is not judged.

    Args:
        outline: The model, on the meta device.
        layers: Those that a technique takes hold of.

    Raises:
        ValueError: Names such a layer, and the way out.
    """
    called: set[nn.Module] = set()
    hooks = [
        place(layer)[0].register_forward_pre_hook(lambda module, _: called.add(module)) for layer in layers.values()
    ]
    ids = torch.zeros(1, 4, dtype=torch.int64, device="meta")
    decoder = {"decoder_input_ids": ids} if outline.model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            outline.model(input_ids=ids, **decoder)
    except (RuntimeError, NotImplementedError):
        return
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name, layer in layers.items() if place(layer)[0] not in called]:
        raise ValueError(
            f"layer '{unseen[0]}' is never called, {type(outline.model).__name__} multiplies with its weight itself, "
            "so that nothing shows of its inputs and no kernel can take its place: leave it out by "
            f"exclude=['*.{unseen[0].rpartition('.')[2]}']"
        )


def calibrate(
    importance: Calibrated,
    family: Family,
    layers: Mapping[str, Layer],
    batches: Iterable[Batch],
    *,
    objective: Callable[[Batch], Tensor],
) -> dict[str, Tensor]:
    """Layer -> the sum of what the importance made of every batch, the model as it stands.

    The model runs without dropout and in the precision of its weights, with the masks and quantizers that are on it.
    It is left as it was, gradients and random state included.

    Args:
        importance: Says what it observes.
        family: The model.
        layers: The layers to look at, by name.
        batches: Training text without padding, on any device.
        objective: The training loss of a batch; read where gradients are observed.

    Raises:
        ValueError: A layer was never used.
    """
    with undisturbed(family):
        on_device = ({name: tensor.to(family.device) for name, tensor in batch.items()} for batch in batches)
        if importance.observes == "input":
            with watching(importance, layers) as statistics, torch.no_grad():
                for statistics.batch, batch in enumerate(on_device):
                    family.forward(batch)
        else:
            statistics = Statistics(importance, layers)
            _show_gradients(statistics, on_device, objective)
    return statistics.complete()


@contextmanager
def watching(importance: Observer, layers: Mapping[str, Layer]) -> Iterator[Statistics]:
    """Statistics of the inputs that ``layers`` read within the context, one row to a call."""
    statistics = Statistics(importance, layers)

    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        statistics.add(name, inputs[0].flatten(0, -2))

    hooks = [place(layer)[0].register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def undisturbed(family: Family) -> Iterator[None]:
    """Eval mode, no autocast, keys and values as floats; eager too, for a compiled model does not notice new hooks."""
    training = family.model.training
    family.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), _as_floats(family):
            yield
    finally:
        family.model.train(training)


@contextmanager
def _as_floats(family: Family) -> Iterator[None]:
    with torch.autocast(family.device.type, enabled=False), float_cache(family.model):
        yield


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """``module`` is on ``device`` for as long, then back where it was."""
    home = next(module.parameters()).device
    nn.Module.to(module, device)
    try:
        yield
    finally:
        nn.Module.to(module, home)


@torch.enable_grad()
def _show_gradients(statistics: Statistics, batches: Iterable[Batch], objective: Callable[[Batch], Tensor]) -> None:
    weights = [latent(layer) for layer in statistics.layers.values()]
    for statistics.batch, batch in enumerate(batches):
        gradients = torch.autograd.grad(objective(batch), weights, allow_unused=True)
        for name, gradient in zip(statistics.layers, gradients, strict=True):
            if gradient is not None:
                statistics.add(name, matrix(statistics.layers[name], gradient))
