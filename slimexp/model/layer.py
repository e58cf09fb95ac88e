"""Which layers a technique transforms, and whether they hold enough of the model to speak of compression."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.model.base import Family, Weight, parameters

Layer = nn.Module | Weight


def check_min_coverage(value: float, name: str = "min_coverage", of: str = "the model's parameters") -> None:
    """Refuse a threshold that is no share.

    Raises:
        ValueError: The value is not in (0, 1].
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], a share of {of}, got {value}")


@dataclass(frozen=True, kw_only=True)
class LayerSelector:
    """Selects the layers that a technique transforms.

    Attributes:
        include: Patterns of names (``*`` for anything, as in a shell); a layer must match one.
        exclude: Patterns of names; a layer must match none.
        min_coverage: Smallest share of the model's parameters that the layers must hold, in (0, 1].
        min_block_coverage: Smallest share that the layers must hold of those weights of the blocks that the patterns
            match, in (0, 1]: the rest may be experts, which are most of a mixture.
    """

    include: Sequence[str]
    exclude: Sequence[str]
    min_coverage: float
    min_block_coverage: float

    def __post_init__(self) -> None:
        check_min_coverage(self.min_coverage)
        check_min_coverage(self.min_block_coverage, "min_block_coverage", "the weights in the blocks")

    def layers(self, family: Family, others: Mapping[str, Weight] | None = None) -> dict[str, Layer]:
        """Compressible layers by name, and those weights of the blocks in no ``nn.Linear`` that a technique reaches.

        Args:
            family: The model.
            others: These weights by name; ``None`` for none.

        Raises:
            ValueError: There is no layer, a pattern matches none, or the layers hold less than ``min_coverage`` of
                the model or ``min_block_coverage`` of the blocks.
        """
        layers: dict[str, Layer] = {**family.compressible(), **(others or {})}
        _require_layers(family, layers)
        layers = _matching(layers, self.include, self.exclude)
        self._check_blocks(family, layers)
        _check_share(family, layers, self.min_coverage)
        return layers

    def weights(self, family: Family) -> dict[str, Layer]:
        """As ``layers``, with all weights of the blocks that are in no ``nn.Linear``."""
        return self.layers(family, family.other_weights())

    def named(self, family: Family, others: Mapping[str, Weight] | None = None) -> dict[str, Layer]:
        """Layers of ``layers`` that the patterns match, however few."""
        layers: dict[str, Layer] = {**family.compressible(), **(others or {})}
        chosen = _match(layers, self.include) - _match(layers, self.exclude)
        return {name: layer for name, layer in layers.items() if name in chosen}

    def _check_blocks(self, family: Family, layers: Mapping[str, Layer]) -> None:
        held = {id(latent(layer)) for layer in layers.values()}
        weights = block_weights(family)
        named = _match(weights, self.include) - _match(weights, self.exclude)
        left = {name: weights[name] for name in sorted(named) if id(weights[name]) not in held}
        reached = sum(weight.numel() for weight in weights.values() if id(weight) in held)
        total = reached + sum(weight.numel() for weight in left.values())
        if reached >= self.min_block_coverage * total:
            return
        largest = sorted(left, key=lambda name: -left[name].numel())
        experts = any("expert" in name for name in largest[:1]) or left[largest[0]].ndim > 2
        what = "the experts, which this technique does not reach" if experts else "weights that it does not reach"
        raise ValueError(
            f"compressible layers hold {reached / total:.1%} of the weights in the blocks of "
            f"{type(family.model).__name__}, min_block_coverage is {self.min_block_coverage:.1%}: most of the others "
            f"are {what} ({_listed(largest)}); lower min_block_coverage to compress only what is reached"
        )


def block_weights(family: Family) -> dict[str, Tensor]:
    """Name -> every parameter of two or more dimensions in the blocks that no ``nn.Embedding`` holds, tied ones once.

    The weight of a linear layer has the layer's name, without ``.weight``, as in filters.
    """
    names = {module: name for name, module in family.model.named_modules()}
    weights: dict[int, tuple[str, Tensor]] = {}
    for module in (module for stack in family.blocks().values() for module in stack.modules()):
        if isinstance(module, nn.Embedding | parametrize.ParametrizationList) or module not in names:
            continue
        masked = {tensor: chain.original for tensor, chain in getattr(module, "parametrizations", {}).items()}
        for tensor, weight in (*module.named_parameters(recurse=False), *masked.items()):
            if weight.ndim > 1:
                name = names[module] if tensor == "weight" else f"{names[module]}.{tensor}"
                weights.setdefault(id(weight), (name, weight))
    return dict(weights.values())


def _require_layers(family: Family, layers: Mapping[str, Layer]) -> None:
    if layers:
        return
    modules = Counter(type(m).__name__ for stack in family.blocks().values() for m in stack.modules())
    names = ", ".join(f"{name} ({count})" for name, count in modules.most_common())
    model = type(family.model).__name__
    raise ValueError(f"nothing to compress: looked for Linear in the blocks of {model}, found {names or 'none'}")


def _check_share(family: Family, layers: Mapping[str, Layer], min_coverage: float) -> None:
    share = coverage(family, layers)
    if share < min_coverage:
        raise ValueError(
            f"compressible layers hold {share:.1%} of the parameters of {type(family.model).__name__}, min_coverage is "
            f"{min_coverage:.1%}: lower min_coverage to go on (layers: {', '.join(list(layers)[:3])}, ...)"
        )


def _matching(layers: dict[str, Layer], include: Sequence[str], exclude: Sequence[str]) -> dict[str, Layer]:
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
    """Refuse weights that are not finite.

    Raises:
        ValueError: A layer's weight holds NaN or infinity.
    """
    for name, layer in layers.items():
        weight = matrix(layer, latent(layer))
        if weight.numel() and not all(end.isfinite() for end in weight.detach().aminmax()):  # NaN is both ends
            raise ValueError(f"layer '{name}': its weight holds NaN or infinity: load or train the model anew")


def coverage(family: Family, layers: Mapping[str, Layer]) -> float:
    """Share of the model's parameters that are weights of ``layers``, tied ones once."""
    return share_of(family, list({id(weight): weight for weight in map(latent, layers.values())}.values()))


def latent(layer: Layer) -> Tensor:
    """The weight that the optimizer sees, beneath any attachments."""
    module, tensor = place(layer)
    if parametrize.is_parametrized(module, tensor):
        return module.parametrizations[tensor].original  # type: ignore[index]
    return module.get_parameter(tensor)


def place(layer: Layer) -> tuple[nn.Module, str]:
    """The module that holds a layer's weight, and the weight's name there."""
    return (layer.module, layer.tensor) if isinstance(layer, Weight) else (layer, "weight")


def matrix(layer: Layer, x: Tensor) -> Tensor:
    """A tensor of the shape of a layer's weight as [out, in], sharing its memory."""
    return layer.matrix(x) if isinstance(layer, Weight) else x


def share_of(family: Family, touched: list[Tensor]) -> float:
    """Share of the model's parameters that ``touched`` holds."""
    return sum(p.numel() for p in touched) / sum(p.numel() for p in parameters(family.model))


def embeddings_of(family: Family) -> dict[str, nn.Module]:
    """Name -> module of the embeddings that add up to the first hidden state, and of all that share a weight with one.

    T5's embedding of relative positions, within a block and as wide as there are heads, is none of these.
    """
    modules = dict(family.model.named_modules())
    width = latent(family.model.get_input_embeddings()).shape[1]
    in_blocks = {module for stack in family.blocks().values() for module in stack.modules()}
    first = {
        latent(module)
        for module in modules.values()
        if isinstance(module, nn.Embedding) and module not in in_blocks and latent(module).shape[1] == width
    }
    sharing = (nn.Embedding, nn.Linear)
    return {name: module for name, module in modules.items() if isinstance(module, sharing) and latent(module) in first}
