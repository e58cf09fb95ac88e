"""Which layers a transform reaches, and whether that is enough to speak of compression."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.model.base import Family, Weight
from slimexp.technique.finetune import share_of

Layer = nn.Module | Weight
L = TypeVar("L", bound=Layer)


def check_min_coverage(value: float) -> None:
    """Refuse a threshold that is none.

    Raises:
        ValueError: It is not in (0, 1].
    """
    if not 0 < value <= 1:
        raise ValueError(f"min_coverage must be in (0, 1], a share of the model's parameters, got {value}")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which layers a technique takes hold of.

    Attributes:
        include: Patterns of names (``*`` for anything, as in a shell); a layer must match one.
        exclude: Patterns of names to leave out of those.
        min_coverage: Least share of the model's parameters that they must hold, in (0, 1].
    """

    include: Sequence[str]
    exclude: Sequence[str]
    min_coverage: float

    def __post_init__(self) -> None:
        check_min_coverage(self.min_coverage)

    def layers(self, family: Family) -> dict[str, nn.Module]:
        """Compressible layers by name.

        Raises:
            ValueError: There are none, a pattern matches none, or they hold less than ``min_coverage``.
        """
        return self._of(family, family.compressible())

    def weights(self, family: Family) -> dict[str, Layer]:
        """The same, and the weights of the blocks that are in no ``nn.Linear``.

        Raises:
            ValueError: As ``layers``.
        """
        return self._of(family, {**family.compressible(), **family.other_weights()})

    def _of(self, family: Family, layers: dict[str, L]) -> dict[str, L]:
        _check_found(family, layers)
        layers = _matching(layers, self.include, self.exclude)
        _check_share(family, layers, self.min_coverage)
        return layers


def _check_found(family: Family, layers: Mapping[str, Layer]) -> None:
    if layers:
        return
    found = Counter(type(m).__name__ for stack in family.blocks().values() for m in stack.modules())
    names = ", ".join(f"{name} ({count})" for name, count in found.most_common())
    model = type(family.model).__name__
    raise ValueError(f"nothing to compress: looked for Linear in the blocks of {model}, found {names or 'none'}")


def _check_share(family: Family, layers: Mapping[str, Layer], min_coverage: float) -> None:
    share = coverage(family, layers)
    if share < min_coverage:
        raise ValueError(
            f"compressible layers hold {share:.1%} of the parameters of {type(family.model).__name__}, min_coverage is "
            f"{min_coverage:.1%}: lower min_coverage to go on (layers: {', '.join(list(layers)[:3])}, ...)"
        )


def _matching(layers: dict[str, L], include: Sequence[str], exclude: Sequence[str]) -> dict[str, L]:
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


def check_finite(layers: Mapping[str, Layer]) -> None:
    """Refuse weights that nothing can be made of.

    Raises:
        ValueError: A layer's weight holds NaN or infinity.
    """
    for name, layer in layers.items():
        if not latent(layer).isfinite().all():
            raise ValueError(f"layer '{name}': its weight holds NaN or infinity: load or train the model anew")


def coverage(family: Family, layers: Mapping[str, Layer]) -> float:
    """Share of the model's parameters that are weights of ``layers``, tied ones once."""
    return share_of(family, list({id(weight): weight for weight in map(latent, layers.values())}.values()))


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
