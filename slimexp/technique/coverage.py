"""Which layers a transform reaches, and whether that is enough to speak of compression."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.model.base import Family, Weight
from slimexp.technique.finetune import share_of

Layer = nn.Module | Weight


def covered_weights(family: Family, *, min_coverage: float) -> dict[str, Layer]:
    """Compressible layers by name, and the weights of the blocks that are in no ``nn.Linear``.

    Raises:
        ValueError: There are none, or they hold less than ``min_coverage`` of the parameters.
    """
    layers: dict[str, Layer] = {**family.compressible(), **family.other_weights()}
    _check(family, layers, min_coverage)
    return layers


def covered_layers(family: Family, *, min_coverage: float) -> dict[str, nn.Module]:
    """Compressible layers by name.

    Raises:
        ValueError: There are none, or they hold less than ``min_coverage`` of the parameters.
    """
    layers = family.compressible()
    _check(family, layers, min_coverage)
    return layers


def _check(family: Family, layers: Mapping[str, Layer], min_coverage: float) -> None:
    model = type(family.model).__name__
    if not layers:
        found = Counter(type(m).__name__ for stack in family.blocks().values() for m in stack.modules())
        names = ", ".join(f"{name} ({count})" for name, count in found.most_common())
        raise ValueError(f"nothing to compress: looked for Linear in the blocks of {model}, found {names or 'none'}")
    share = coverage(family, layers)
    if share < min_coverage:
        raise ValueError(
            f"compressible layers hold {share:.1%} of the parameters of {model}, min_coverage is {min_coverage:.1%}: "
            f"lower min_coverage to go on (layers: {', '.join(list(layers)[:3])}, ...)"
        )


def coverage(family: Family, layers: Mapping[str, Layer]) -> float:
    """Share of the model's parameters that are weights of ``layers``."""
    return share_of(family, [latent(layer) for layer in layers.values()])


def latent(layer: Layer) -> Tensor:
    """The weight that the optimizer sees, beneath any attachments."""
    module, tensor = place(layer)
    if parametrize.is_parametrized(module, tensor):
        return module.parametrizations[tensor].original  # type: ignore[index,union-attr]
    return module.get_parameter(tensor)


def place(layer: Layer) -> tuple[nn.Module, str]:
    """The module that holds a layer's weight, and the weight's name there."""
    return (layer.module, layer.tensor) if isinstance(layer, Weight) else (layer, "weight")


def matrix(layer: Layer, x: Tensor) -> Tensor:
    """A tensor of the shape of a layer's weight as [out, in], sharing its memory."""
    return layer.matrix(x) if isinstance(layer, Weight) else x
