"""Which layers a transform reaches, and whether that is enough to speak of compression."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.model.base import Family
from slimexp.technique.finetune import share_of


def covered_layers(
    family: Family, *, min_coverage: float, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Compressible layers by name.

    Args:
        family: The model.
        min_coverage: Least share of the model's parameters that they must hold.
        include: Patterns of names (``*`` for anything, as in a shell); a layer must match one.
        exclude: Patterns of names to leave out of those.

    Raises:
        ValueError: There are none, a pattern matches none, or they hold less than ``min_coverage`` of the parameters.
    """
    layers = family.compressible()
    model = type(family.model).__name__
    if not layers:
        found = Counter(type(m).__name__ for stack in family.blocks().values() for m in stack.modules())
        names = ", ".join(f"{name} ({count})" for name, count in found.most_common())
        raise ValueError(f"nothing to compress: looked for Linear in the blocks of {model}, found {names or 'none'}")
    layers = _matching(layers, include, exclude)
    share = coverage(family, layers)
    if share < min_coverage:
        raise ValueError(
            f"compressible layers hold {share:.1%} of the parameters of {model}, min_coverage is {min_coverage:.1%}: "
            f"lower min_coverage to go on (layers: {', '.join(list(layers)[:3])}, ...)"
        )
    return layers


def _matching(layers: dict[str, nn.Module], include: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Module]:
    for what, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not _match(layers, [pattern]):
                raise ValueError(f"{what}: no layer is called '{pattern}'; there are {_listed(layers)}")
    chosen = _match(layers, include) - _match(layers, exclude)
    if not chosen:
        raise ValueError(f"include and exclude leave no layer of {_listed(layers)}")
    return {name: layer for name, layer in layers.items() if name in chosen}


def _match(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _listed(names: Iterable[str]) -> str:
    """Names of layers, those of like blocks as one: ``model.layers.{0..9}.mlp.up_proj``."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in names:
        before, number, after = [*re.split(r"(?<=\.)(\d+)(?=\.)", name, maxsplit=1), "", ""][:3]
        blocks.setdefault((before, after), []).append(number)
    return ", ".join(
        before + (f"{{{numbers[0]}..{numbers[-1]}}}" if len(numbers) > 1 else numbers[0]) + after
        for (before, after), numbers in blocks.items()
    )


def coverage(family: Family, layers: dict[str, nn.Module]) -> float:
    """Share of the model's parameters that are weights of ``layers``."""
    return share_of(family, [latent(layer) for layer in layers.values()])


def latent(layer: nn.Module) -> Tensor:
    """The weight that the optimizer sees, beneath any attachments."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
    return layer.get_parameter("weight")
