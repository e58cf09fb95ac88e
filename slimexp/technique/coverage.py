"""Which layers a transform reaches, and whether that is enough to speak of compression."""

from collections import Counter

from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.model.base import Family
from slimexp.technique.finetune import share_of


def covered_layers(family: Family, *, min_coverage: float) -> dict[str, nn.Module]:
    """Compressible layers by name.

    Raises:
        ValueError: There are none, or they hold less than ``min_coverage`` of the parameters.
    """
    layers = family.compressible()
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
    return layers


def coverage(family: Family, layers: dict[str, nn.Module]) -> float:
    """Share of the model's parameters that are weights of ``layers``."""
    return share_of(family, [latent(layer) for layer in layers.values()])


def latent(layer: nn.Module) -> Tensor:
    """The weight that the optimizer sees, beneath any attachments."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
    return layer.get_parameter("weight")
