"""Cutting a smaller transformers model out of a larger one: layers, heads, neurons, hidden width.

The result is a plain transformers model with a config of its own. What survives within a layer is
chosen by importance: for a neuron, its mean activation times the norm of the weights that read it
(Muralidharan et al. 2024, "Compact language models via pruning and knowledge distillation",
section 2.2); without calibration batches, the norms alone.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from slimexp.model.anatomy import ANATOMIES, FFN, HEADS, HIDDEN, KV_HEADS, Anatomy
from slimexp.model.base import Batch, Family

Kept = Mapping[str, Tensor]  # block, or "" for the whole model -> indices that survive, rising


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What survives of a model; ``None`` keeps everything.

    Attributes:
        encoder_layers: Indices of the encoder blocks kept, rising.
        decoder_layers: Indices of the decoder blocks kept, rising.
        ffn: Feed-forward neurons kept per block.
        heads: Groups of attention heads kept per block: a key/value head with the query heads that share it.
        hidden: Channels of the residual stream kept.
        calibration_batches: Batches of training text that the importance is taken from.
    """

    encoder_layers: Sequence[int] | None
    decoder_layers: Sequence[int] | None
    ffn: int | None
    heads: int | None
    hidden: int | None
    calibration_batches: int

    def __post_init__(self) -> None:
        if self.calibration_batches < 0:
            raise ValueError(f"cut.calibration_batches must be >= 0, got {self.calibration_batches}")

    def apply(self, family: Family, batches: Sequence[Batch]) -> Family:
        """The smaller model, with weights copied from ``family`` (which stays as it was).

        Args:
            family: The model cut from.
            batches: Calibration batches for the importance of neurons, heads and channels; may be empty.

        Raises:
            ValueError: A layer, width or architecture that cannot be cut; names what can.
        """
        config = family.model.config
        anatomy = self._anatomy(config)
        layers = self._layers(family, anatomy)
        width = head_width(config)
        kept: dict[str, Kept] = {}
        if self.hidden is not None:
            kept[HIDDEN] = {"": _highest(self.hidden, hidden_importance(family, anatomy, batches), HIDDEN)}
        if self.ffn is not None:
            scores = reader_importance(family, anatomy.neurons, batches)
            kept[FFN] = {block(name, anatomy): _highest(self.ffn, score, FFN) for name, score in scores.items()}
        if self.heads is not None:
            groups = getattr(config, anatomy.sizes[KV_HEADS])
            scores = reader_importance(family, anatomy.values, batches)
            best = {
                block(name, anatomy): _highest(self.heads, score.view(groups, -1).sum(1), HEADS)
                for name, score in scores.items()
            }
            share = config.num_attention_heads // groups
            kept[KV_HEADS] = {name: _runs(indices, width) for name, indices in best.items()}
            kept[HEADS] = {name: _runs(indices, share * width) for name, indices in best.items()}
        return remove(family, layers, kept)

    def validate(self, config: PreTrainedConfig) -> None:
        """Refuse an architecture or an axis that cannot be cut, before anything is loaded.

        Raises:
            ValueError: Names what can be cut.
        """
        self._anatomy(config)

    def _anatomy(self, config: PreTrainedConfig) -> Anatomy:
        kind = config.model_type
        if kind not in ANATOMIES:
            raise ValueError(f"a model of type {kind} cannot be cut; types that can: {', '.join(sorted(ANATOMIES))}")
        anatomy = ANATOMIES[kind]
        for axis, asked, word in (
            (HIDDEN, self.hidden, "hidden"),
            (FFN, self.ffn, "ffn"),
            (KV_HEADS, self.heads, "heads"),
        ):
            if asked is None:
                continue
            if axis not in anatomy.sizes:
                raise ValueError(
                    f"cut.{word} must be null for a model of type {kind}, whose {word} cannot be cut alone"
                )
            size = getattr(config, anatomy.sizes[axis])
            if not 0 < asked <= size:
                raise ValueError(f"cut.{word} must be in 1..{size}, the model's own; got {asked}")
        for stack, layers in (("encoder", self.encoder_layers), ("decoder", self.decoder_layers)):
            if layers is not None:
                self._check_layers(stack, layers, config, anatomy)
        if "encoder" in anatomy.depths and "decoder" in anatomy.depths:
            self._check_depths(config, anatomy)
        return anatomy

    def _check_depths(self, config: PreTrainedConfig, anatomy: Anatomy) -> None:
        """transformers (5.23) sizes the decoder's cache by the encoder's depth."""
        encoder = len(self.encoder_layers or range(getattr(config, anatomy.depths["encoder"])))
        decoder = len(self.decoder_layers or range(getattr(config, anatomy.depths["decoder"])))
        if decoder > encoder:
            raise ValueError(
                f"cut must not leave more decoder blocks ({decoder}) than encoder blocks ({encoder}): "
                "transformers could not generate with a cache"
            )

    @staticmethod
    def _check_layers(stack: str, layers: Sequence[int], config: PreTrainedConfig, anatomy: Anatomy) -> None:
        if stack not in anatomy.depths:
            raise ValueError(f"cut.{stack}_layers must be null: a model of type {config.model_type} has no {stack}")
        depth = getattr(config, anatomy.depths[stack])
        rising = list(layers) == sorted(set(layers)) and len(layers) > 0
        if not rising or any(i not in range(depth) for i in layers):
            raise ValueError(
                f"cut.{stack}_layers must be rising indices in 0..{depth - 1}, at least one; got {list(layers)}"
            )
        if anatomy.first_block_stays and layers[0] != 0:
            raise ValueError(
                f"cut.{stack}_layers must keep block 0, whose position table all share; got {list(layers)}"
            )

    def _layers(self, family: Family, anatomy: Anatomy) -> dict[str, list[int]]:
        asked = {"encoder": self.encoder_layers, "decoder": self.decoder_layers}
        blocks = {stack: list(range(len(blocks))) for stack, blocks in family.blocks().items()}
        return {stack: blocks[stack] if asked[stack] is None else list(asked[stack] or []) for stack in anatomy.depths}


def remove(family: Family, layers: Mapping[str, Sequence[int]], kept: Mapping[str, Kept]) -> Family:
    """A plain transformers model of what survives, with a config of its own.

    Args:
        family: The model cut from; it stays as it was.
        layers: Stack -> indices of its blocks that survive, rising; every stack of the model.
        kept: Axis -> block -> indices of the rows or columns that survive; an axis left out stays whole. Widths are
            the same in all blocks.
    """
    model, config = family.model, copy.deepcopy(family.model.config)
    anatomy = ANATOMIES[config.model_type]
    _resize(config, anatomy, layers, {axis: len(next(iter(blocks.values()))) for axis, blocks in kept.items()})
    small = type(model)(config)
    if model.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
    state = model.state_dict()
    taken = {name: _in_large(name, anatomy, layers) for name in small.state_dict()}
    small.load_state_dict({name: _slice(state[old], old, anatomy, kept) for name, old in taken.items()})
    if HIDDEN in kept:
        _rescale_norms(small, anatomy, model.config.hidden_size)
    small.tie_weights()
    return type(family)(small.eval(), family.tokenizer, max_length=family.max_length)


def reader_importance(family: Family, reader: str, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Importance of what a layer reads, per input channel: mean |input| times the norm of its column.

    Args:
        family: The model.
        reader: Pattern of the names of the layers.
        batches: Calibration batches; empty for the norms alone.

    Returns:
        Layer name -> [in].
    """
    readers = {name: module for name, module in family.model.named_modules() if re.search(reader, name)}
    norms = {name: module.get_parameter("weight").detach().norm(dim=0) for name, module in readers.items()}
    if not batches:
        return norms
    activity = _mean_absolute_input(family, readers, batches)
    return {name: norms[name] * activity[name] for name in norms}


def hidden_importance(family: Family, anatomy: Anatomy, batches: Sequence[Batch]) -> Tensor:
    """Importance of every channel of the residual stream, [hidden]: its share of |input| of the norms."""
    if not batches:
        return family.model.get_input_embeddings().weight.detach().norm(dim=0)
    norms = {name: module for name, module in family.model.named_modules() if re.search(anatomy.norm, name)}
    activity = _mean_absolute_input(family, norms, batches)
    return torch.stack([channels / channels.mean() for channels in activity.values()]).sum(0)


def head_width(config: PreTrainedConfig) -> int:
    """Channels of one attention head."""
    explicit = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def block(name: str, anatomy: Anatomy) -> str:
    """The part of a parameter's or module's name up to its block's index; "" outside the blocks."""
    found = re.search(anatomy.block, f"{name}.")
    return name[: found.end() - 1] if found else ""


@torch.no_grad()
def _mean_absolute_input(
    family: Family, modules: Mapping[str, nn.Module], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Mean |x| of each module's input per channel over ``batches``."""
    totals: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            total = inputs[0].detach().abs().flatten(0, -2).mean(0)
            totals[name] = totals[name] + total if name in totals else total

        return modules[name].register_forward_pre_hook(add)

    handles = [watch(name) for name in modules]
    was_training = family.model.training
    family.model.eval()
    try:
        for batch in batches:
            family.forward({name: tensor.to(family.device) for name, tensor in batch.items()})
    finally:
        family.model.train(was_training)
        for handle in handles:
            handle.remove()
    return totals


def _highest(count: int, importance: Tensor, axis: str) -> Tensor:
    assert count <= len(importance), axis
    return importance.topk(count).indices.sort().values


def _runs(indices: Tensor, length: int) -> Tensor:
    """Each index -> the ``length`` channels it stands for."""
    return (indices[:, None] * length + torch.arange(length)).flatten()


def _resize(
    config: PreTrainedConfig, anatomy: Anatomy, layers: Mapping[str, Sequence[int]], widths: Mapping[str, int]
) -> None:
    """Write the new sizes into ``config``; ``widths`` counts rows and columns, so heads times their width for heads."""
    width = head_width(config)
    if KV_HEADS in anatomy.sizes:
        config.head_dim = width  # else it would follow from the new width
    for axis, count in widths.items():
        setattr(config, anatomy.sizes[axis], count // width if axis in (HEADS, KV_HEADS) else count)
    for stack, blocks in layers.items():
        setattr(config, anatomy.depths[stack], len(blocks))
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[i] for i in blocks]


@torch.no_grad()
def _rescale_norms(small: PreTrainedModel, anatomy: Anatomy, hidden: int) -> None:
    """Undo what a mean over fewer channels does to an RMS norm: sliced, the model is what it is with them masked."""
    ratio = (hidden / small.config.hidden_size) ** 0.5
    for name, norm in small.named_modules():
        if re.search(anatomy.norm, name):
            norm.get_parameter("weight").mul_(ratio)
    if getattr(small.config, "scale_decoder_outputs", False):  # T5 before 1.1: times hidden^-1/2 before the head
        small.get_parameter("decoder.final_layer_norm.weight").div_(ratio)


def _in_large(name: str, anatomy: Anatomy, layers: Mapping[str, Sequence[int]]) -> str:
    """Name of a parameter of the small model in the large one."""
    stack = next((stack for stack in layers if name.startswith(f"{stack}.")), next(iter(layers)))
    return re.sub(anatomy.block, lambda found: found[0].replace(found[1], str(layers[stack][int(found[1])])), name)


def _slice(tensor: Tensor, name: str, anatomy: Anatomy, kept: Mapping[str, Kept]) -> Tensor:
    for dimension, axis in enumerate(anatomy.of(name)):
        if axis in kept:
            indices = kept[axis].get(block(name, anatomy), kept[axis].get(""))
            assert indices is not None, name
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
    return tensor.clone()
