"""Calibration on the model as it stands: statistics of layers' inputs, or of weights' gradients, over training rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from slimexp.host.progress import counted
from slimexp.importance.base import Calibrated, Importance
from slimexp.model.base import Batch, Family
from slimexp.model.cache import float_cache
from slimexp.model.experts import read
from slimexp.model.layer import Layer, latent, matrix, place

HALF = (torch.float16, torch.bfloat16)


class Observer(Protocol):
    """Interface of what is calibrated: an importance, a smoothing, a rounding.

    Attributes:
        rows: Number of rows of training text that it is calibrated on.
    """

    rows: int

    def observe(self, weight: Tensor, observed: Tensor) -> Tensor:
        """The statistic of one row.

        Args:
            weight: [out, in], without gradient.
            observed: The layer's inputs at every token of the row, [N, in], or the gradient of the weight, [out, in].
        """

    def merge(self, total: Tensor, part: Tensor) -> Tensor:
        """The statistic of the rows in ``total`` and in ``part`` together; may write to ``total``."""


class Statistics:
    """Merges an observer's statistics of single rows into one per layer.

    Args:
        observer: Computes the statistic of a row.
        layers: The layers, by name.

    Attributes:
        batch: Number of the current batch, for messages.
        tokens: Layer -> number of tokens that were observed of its inputs.
    """

    def __init__(self, observer: Observer, layers: Mapping[str, Layer]) -> None:
        self.observer = observer
        self.layers = layers
        self.batch = 0
        self.tokens: Counter[str] = Counter()
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, observed: Tensor) -> None:
        """Add the statistic of what was observed of a layer in the current batch.

        Raises:
            ValueError: ``observed`` holds NaN or infinity.
        """
        if not observed.isfinite().all():
            raise ValueError(
                f"layer '{name}': what {type(self.observer).__name__} observes of it holds NaN or infinity in "
                f"calibration batch {self.batch}"
            )
        layer = self.layers[name]
        part = self.observer.observe(matrix(layer, latent(layer).detach()), observed.detach())
        self._sums[name] = self.observer.merge(self._sums[name], part) if name in self._sums else part

    def complete(self) -> dict[str, Tensor]:
        """Layer -> its statistic over all rows.

        Raises:
            ValueError: A layer was never used (an expert that no token was routed to, say).
        """
        if unseen := self.layers.keys() - self._sums.keys():
            raise ValueError(
                f"layer '{min(unseen)}' had no part in the {self.observer.rows} rows that "
                f"{type(self.observer).__name__} was calibrated on: raise importance.rows if no token went to that "
                "expert, else exclude the layer"
            )
        return self._sums


def observes_inputs(importance: Importance) -> bool:
    """Whether an importance is calibrated on the inputs of layers."""
    return isinstance(importance, Calibrated) and importance.observes == "input"


def check_called(outline: Family, layers: Mapping[str, Layer]) -> None:
    """Refuse layers whose weight the model multiplies itself: no hook sees their inputs, no kernel can replace them.

    Mamba does so with ``dt_proj``. The model runs once on the meta device; one whose forward pass depends on values (a
    mixture that routes tokens) does not run there, and is not checked.

    Args:
        outline: The model, on the meta device.
        layers: The layers that a technique compresses, by name.

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
    """Layer -> the importance's statistic over all batches, with the model as it stands.

    The model runs without dropout and in the precision of its weights, with the masks and quantizers that are on it.
    It is left as it was, gradients and random state included.

    Args:
        importance: Observes inputs or gradients, as its ``observes`` says.
        family: The model.
        layers: The layers to observe, by name.
        batches: Training text without padding, on any device.
        objective: The training loss of a batch; called where gradients are observed.

    Raises:
        ValueError: A layer was never used.
    """
    with undisturbed(family):
        rows = counted(batches, "calibration row", importance.rows)
        on_device = ({name: tensor.to(family.device) for name, tensor in batch.items()} for batch in rows)
        if importance.observes == "input":
            with input_statistics(importance, layers) as statistics, torch.no_grad():
                for statistics.batch, batch in enumerate(on_device):
                    family.run(batch)
        else:
            statistics = Statistics(importance, layers)
            _add_gradients(statistics, on_device, objective)
    return statistics.complete()


@contextmanager
def input_statistics(observer: Observer, layers: Mapping[str, Layer]) -> Iterator[Statistics]:
    """Statistics of the inputs that ``layers`` read within the context; every call of a layer is one row."""
    statistics = Statistics(observer, layers)

    def add(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tokens = read(layers[name], inputs)
        statistics.add(name, tokens)
        statistics.tokens[name] += len(tokens)

    hooks = [place(layer)[0].register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def undisturbed(family: Family) -> Iterator[None]:
    """Eval mode, no autocast, keys and values as floats; eager, because a compiled model does not call new hooks."""
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
    """Move ``module`` to ``device`` within the context, and back afterwards, each weight to the type that it had.

    On a CPU, weights of 16 bits are in float32 meanwhile: there it is faster, and what is computed is what a model in
    float32 would compute. A weight that comes back with the values it had is the tensor it was before: one that is
    mapped from a file stays so, and takes no memory of its own.
    """
    with lent(module.modules(), device):
        yield


@contextmanager
def lent(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """What ``visiting`` does, to what ``modules`` hold themselves: modules within them stay where they are."""
    modules = list(modules)
    weights = list(dict.fromkeys(weight for module in modules for weight in module.parameters(recurse=False)))  # tied
    stored = [weight.data for weight in weights]
    home = stored[0].device if stored else device
    copies: Sequence[Tensor | None] = [None] * len(stored)
    try:
        for weight, before in zip(weights, stored, strict=True):
            moved = before.to(device)
            weight.data = moved.float() if device.type == "cpu" and moved.dtype in HALF else moved
        _move_buffers(modules, device)
        if device != home and _fits_twice(weights, device):
            copies = [weight.data.clone() for weight in weights]
        yield
    finally:
        for weight, before, copy in zip(weights, stored, copies, strict=True):
            _give_back(weight, before, copy)
        _move_buffers(modules, home)  # new ones too


def _move_buffers(modules: Iterable[nn.Module], device: torch.device) -> None:
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _fits_twice(weights: Iterable[Tensor], device: torch.device) -> bool:
    """Whether a copy of the weights takes little of what is free on a GPU."""
    if device.type != "cuda":
        return False
    return 8 * sum(weight.nbytes for weight in weights) < torch.cuda.mem_get_info(device)[0]


def _give_back(weight: nn.Parameter, before: Tensor, copy: Tensor | None) -> None:
    """Bring a weight back to the device and the type of ``before``, and to its memory where it is the same.

    Args:
        weight: The weight.
        before: What it was.
        copy: The same where the weight is now, so that what did not change need not come back to be compared.
    """
    if copy is not None and torch.equal(weight.data, copy):
        weight.data = before
        return
    after = weight.data.to(before.device, before.dtype)
    if after.data_ptr() != before.data_ptr() and torch.equal(after, before):
        after = before
    weight.data = after


@torch.enable_grad()
def _add_gradients(statistics: Statistics, batches: Iterable[Batch], objective: Callable[[Batch], Tensor]) -> None:
    weights = [latent(layer) for layer in statistics.layers.values()]
    for statistics.batch, batch in enumerate(batches):
        gradients = torch.autograd.grad(objective(batch), weights, allow_unused=True)
        for name, gradient in zip(statistics.layers, gradients, strict=True):
            if gradient is not None:
                statistics.add(name, matrix(statistics.layers[name], gradient))
