"""Declarations of architectures: which dimension of which parameter counts heads, neurons, channels, experts, tokens.

A declaration is short where types are alike: it starts from that of another type and adds what differs.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from transformers import PreTrainedConfig

HIDDEN, HEADS, KV_HEADS, FFN, EXPERTS, VOCABULARY = "hidden", "heads", "kv_heads", "ffn", "experts", "vocabulary"
EXPERT_FFN = "expert_ffn"  # neurons of an expert, each of which retains its own
QUERIES, LATENTS, TABLE = "queries", "latents", "table"  # other dimensions that follow HEADS
QKV, GATE_UP = "qkv", "gate_up"  # of projections that are fused into one matrix
EXPERT_GATE_UP = "expert_gate_up"  # of those of an expert
LAYERS = "layers"
OTHER = "other"

_WHOLE_MODEL = (HIDDEN, VOCABULARY)
Axes = Mapping[str, tuple[str, ...]]
# Of the linear map that may be in the place of what is ``optional`` in a block, see ``model.widths``.
_REPLACEMENT: Axes = {r"\.to_rank\.weight$": (OTHER, HIDDEN), r"\.from_rank\.weight$": (HIDDEN, OTHER)}
Refusal = str | Callable[[PreTrainedConfig], str | None]


@dataclass(frozen=True)
class Rule:
    """Where channels can be scaled within a block: an op divides its outputs, the layers that read them multiply.

    Attributes:
        before: Name of the op within the block: a norm, or a linear layer. Nothing between it and the readers may
            change what a positive factor per channel does.
        after: Names of the layers that read the op's output, and nothing else does.
        part: Axis of the rows of a fused projection that are meant, the last of that axis: of queries, keys and values
            the values (``KV_HEADS``), of gate and up projection the latter (``FFN``); ``None`` for all rows.
    """

    before: str
    after: tuple[str, ...]
    part: str | None = None


Rules = Callable[[PreTrainedConfig], Sequence[Rule]]


@dataclass(frozen=True)
class Architecture:
    """What removal and scaling need to know of a model type.

    Attributes:
        axes: Regular expression of a parameter's name -> axis of each of its dimensions; the first match counts.
        block: Regular expression of a block's index in a parameter's name, the index as its one group.
        sizes: Axis -> config key of its size, or all keys that must hold the same size; an axis without one cannot be
            cut.
        depths: Stack -> config key of its number of blocks.
        epsilon: Config key of what RMS norms add to the mean square.
        head_dim: Config key of the channels of a head, where that would otherwise follow from other sizes.
        widths: Axis that follows ``HEADS`` -> number of its entries that belong to one head.
        parts: Axis of a fused projection -> axes of what lies in it, one after the other.
        scopes: Axis -> regular expression of the part of a name within which all parameters retain the same units; a
            block, where the axis is left out.
        refusals: Axis, or ``LAYERS`` -> reason why it cannot be cut, or what gives one for some configs.
        alike: Axis -> reason why every block must keep as many of its units, where they can be cut.
        optional: ``HEADS`` or ``FFN`` -> name within a block of the module that a block can do without: what it adds to
            the residual stream is then nothing, or a linear map of what the module would get.
        first_block: Why block 0 must stay, or what gives a reason for some configs; ``None`` where it can go.
        dense_blocks: Config key of the number of leading blocks that are no mixtures of experts.
        counts_from_padding: Whether positions are counted from the id of the padding token.
        gain: What a norm adds to its weight before it multiplies.
        embedding_scale: Whether embeddings are multiplied by the root of the hidden width.
        final_norm: Name of the norm before the head, where ``embedding_scale`` is set.
        rules: Config -> where channels can be scaled within a block.
    """

    axes: Axes
    block: str
    sizes: Mapping[str, str | tuple[str, ...]]
    depths: Mapping[str, str]
    epsilon: str | None = None
    head_dim: str | None = None
    widths: Mapping[str, Callable[[PreTrainedConfig], int]] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scopes: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    alike: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    first_block: Refusal | None = None
    dense_blocks: str | None = None
    counts_from_padding: bool = False
    gain: float = 0.0
    embedding_scale: bool = False
    final_norm: str = ""
    rules: Rules = lambda _: ()

    def of(self, name: str) -> tuple[str, ...]:
        """Axes of the parameter called ``name``.

        Raises:
            ValueError: No pattern of the architecture matches the name.
        """
        for pattern, axes in chain(_REPLACEMENT.items(), self.axes.items()):
            if re.search(pattern, name):
                return axes
        raise ValueError(
            f"parameter '{name}' has no known axes: this variant cannot be cut; leave out the stage that removes, or "
            "choose another model"
        )

    def counted(self, name: str) -> set[str]:
        """Axes that the dimensions of the parameter called ``name`` count, those in fused projections among them."""
        return {part for axis in self.of(name) for part in self.parts.get(axis, (axis,))}

    def leader(self, axis: str) -> str:
        """The axis whose units decide what is retained along ``axis``: position tables and latents follow heads."""
        return HEADS if axis in self.widths and axis != KV_HEADS else axis

    def keys(self, axis: str) -> tuple[str, ...]:
        """Config keys of the size of ``axis``."""
        keys = self.sizes[axis]
        return (keys,) if isinstance(keys, str) else keys

    def refusal(self, axis: str, config: PreTrainedConfig) -> str | None:
        """Reason why ``axis`` cannot be cut; ``None`` where it can, or where the type has no such axis."""
        if (reason := _given(self.refusals.get(axis), config)) is not None or axis not in self.sizes:
            return reason
        sizes = {key: getattr(config, key) for key in self.keys(axis)}
        several = ", ".join(f"{key}={units}" for key, units in sizes.items())
        return f"its stacks have other numbers of them ({several})" if len(set(sizes.values())) > 1 else None

    def first(self, config: PreTrainedConfig) -> str | None:
        """Why block 0 must stay; ``None`` where it can go."""
        return _given(self.first_block, config)

    def can_cut(self, axis: str, config: PreTrainedConfig) -> bool:
        """Whether units of ``axis`` can go."""
        return (axis == LAYERS or axis in self.sizes) and self.refusal(axis, config) is None

    @property
    def groups(self) -> str:
        """Axis of the units that attention can lose: key/value heads, or heads where each has keys of its own."""
        return KV_HEADS if KV_HEADS in self.sizes else HEADS


def _given(reason: Refusal | None, config: PreTrainedConfig) -> str | None:
    return reason(config) if callable(reason) else reason


def head_width(config: PreTrainedConfig) -> int:
    """Number of channels of one attention head where the output projection reads it."""
    explicit = next((w for key in ("v_head_dim", "head_dim", "d_kv") if (w := getattr(config, key, None))), None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def block(name: str, architecture: Architecture) -> str:
    """The part of a parameter's or module's name up to its block's index; "" outside the blocks."""
    match = re.search(architecture.block, f"{name}.")
    return name[: match.end() - 1] if match else ""


def in_stack(name: str, stacks: Iterable[str]) -> str:
    """The one of ``stacks`` that holds the parameter or module ``name``; the first one for what lies outside of all."""
    names = list(stacks)
    return next((stack for stack in names if re.match(rf"(model\.)?{stack}\.", name)), names[0])


def block_index(name: str, architecture: Architecture) -> tuple[str, int] | None:
    """Stack and index of the block that is, or holds, the parameter or module ``name``; ``None`` outside the blocks."""
    match = re.search(architecture.block, f"{name}.")
    return None if match is None else (in_stack(name, architecture.depths), int(match[1]))


def scope(name: str, axis: str, architecture: Architecture) -> str:
    """The part of a parameter's or module's name within which all retain the same units of ``axis``."""
    if axis in _WHOLE_MODEL:
        return ""
    if axis in architecture.scopes:
        match = re.search(architecture.scopes[axis], name)
        return match[0] if match else ""
    return block(name, architecture)
