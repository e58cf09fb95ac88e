"""Queries, keys and values of self-attention, as they leave their projections, whatever a model type calls these."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from slimexp.loss.base import IGNORE, Attention, Stack
from slimexp.model.base import Batch, Family

NAMES = (
    ("q", "q_proj", "query", "query_proj", "q_lin"),
    ("k", "k_proj", "key", "key_proj", "k_lin"),
    ("v", "v_proj", "value", "value_proj", "v_lin"),
)
FUSED = ("qkv_proj", "c_attn", "Wqkv")  # all three by one layer, one after the other


@dataclass(frozen=True)
class Projections:
    """Layers that make queries, keys and values of a block's input.

    Attributes:
        modules: Three layers, or one whose outputs are all three, one after the other.
        widths: Channels of queries, keys and values.
    """

    modules: tuple[nn.Module, ...]
    widths: tuple[int, int, int]

    def divided(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the outputs of ``modules``."""
        queries, keys, values = outputs if len(outputs) == 3 else outputs[0].split(self.widths, dim=-1)
        return queries, keys, values


def projections(block: nn.Module, config: PreTrainedConfig) -> Projections | None:
    """Those of a block's self-attention; ``None`` where it has no layers of their own for queries, keys and values."""
    for module in block.modules():  # attention to another stack comes after that to the own
        children = dict(module.named_children())
        three = [next((children[name] for name in names if name in children), None) for names in NAMES]
        layers = [layer for layer in three if isinstance(layer, nn.Linear | Conv1D)]
        if len(layers) == len(NAMES):
            queries, keys, values = map(_width, layers)
            return Projections(tuple(layers), (queries, keys, values))
        fused = next((children[name] for name in FUSED if name in children), None)
        if isinstance(fused, nn.Linear | Conv1D):
            return _fused(fused, config)
    return None


def stacks(family: Family) -> dict[str, Stack]:
    """What losses need to know of a model's stacks."""
    config = family.model.config.get_text_config()
    found = {}
    for name, blocks in family.blocks().items():
        places = [projections(block, config) for block in blocks]
        found[name] = Stack(config.hidden_size, tuple(None if place is None else place.widths for place in places))
    return found


def attended(family: Family, indices: Collection[int]) -> list[nn.Module]:
    """Blocks of these indices, of every stack."""
    return [blocks[index] for blocks in family.blocks().values() for index in indices]


@contextmanager
def captured(family: Family, batch: Batch, indices: Collection[int]) -> Iterator[Mapping[tuple[str, int], Attention]]:
    """Within the context the model runs once; at its end the mapping holds the self-attention of blocks.

    Args:
        family: The model.
        batch: What it runs on.
        indices: Blocks of every stack, from 0, or from the end.
    """
    found: dict[tuple[str, int], Attention] = {}
    config = family.model.config.get_text_config()
    with ExitStack() as hooks:
        outputs: dict[tuple[str, int], dict[int, Tensor]] = {}
        places: dict[tuple[str, int], Projections] = {}
        for stack, blocks in family.blocks().items() if indices else ():
            for index in indices:
                place = projections(blocks[index], config)
                assert place is not None, "refused before"
                places[stack, index] = place
                for number, module in enumerate(place.modules):
                    kept = outputs.setdefault((stack, index), {})
                    hooks.enter_context(_kept(module, kept, number))
        yield found
        for key, place in places.items():
            kept = outputs[key]
            queries, keys, values = place.divided([kept[number] for number in range(len(place.modules))])
            found[key] = Attention(queries, keys, values, _sees(family, batch, key[0]))


@contextmanager
def _kept(module: nn.Module, outputs: dict[int, Tensor], number: int) -> Iterator[None]:
    """Within the context the first output of a module is kept under ``number``; a checkpointed one runs again later."""

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.setdefault(number, output)

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _sees(family: Family, batch: Batch, stack: str) -> Tensor:
    """Whether a token of a stack may see another, [B, T, T]; padding sees nothing."""
    is_target = stack == "decoder" and bool(family.model.config.is_encoder_decoder)
    if is_target:
        real = batch["labels"] != IGNORE
    elif "attention_mask" in batch:
        real = batch["attention_mask"] != 0
    else:
        real = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    sees = real[:, :, None] & real[:, None, :]
    if "position_ids" in batch:  # rows of several documents
        document = (batch["position_ids"] == 0).cumsum(1)
        sees = sees & (document[:, :, None] == document[:, None, :])
    return sees.tril() if stack == "decoder" else sees


def _fused(layer: nn.Linear | Conv1D, config: PreTrainedConfig) -> Projections | None:
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    width, rest = divmod(_width(layer), heads + 2 * shared)
    return None if rest else Projections((layer,), (heads * width, shared * width, shared * width))


def _width(layer: nn.Linear | Conv1D) -> int:
    """Number of channels that a layer puts out."""
    return int(layer.nf if isinstance(layer, Conv1D) else layer.out_features)
