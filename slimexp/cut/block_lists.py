"""What a config lists block by block, with fewer blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedConfig

from slimexp.architecture.mixture import is_sparse

_ONE_ENTRY_PER_BLOCK = ("layer_types", "mlp_layer_types", "no_rope_layers", "layer_rope_theta")


def renumber_blocks(config: PreTrainedConfig, blocks: Sequence[int]) -> None:
    """Write into a config what its lists become when only ``blocks`` stay; the number of blocks itself does not change.

    Args:
        config: Config of the larger model; it is changed in place.
        blocks: Indices of the blocks retained, ascending.
    """
    if getattr(config, "decoder_sparse_step", None) is not None:  # which blocks hold experts follows from the index
        config.mlp_only_layers = [new for new, old in enumerate(blocks) if not is_sparse(old, config)]
        config.decoder_sparse_step = 1
    for key in _ONE_ENTRY_PER_BLOCK:
        if entries := getattr(config, key, None):
            setattr(config, key, [entries[i] for i in blocks])


@contextmanager
def only_blocks(config: PreTrainedConfig, blocks: Sequence[int]) -> Iterator[None]:
    """A context in which the lists that a model reads as it runs are those of ``blocks``."""
    lists = {key: entries for key in _ONE_ENTRY_PER_BLOCK if (entries := getattr(config, key, None))}
    for key, entries in lists.items():
        setattr(config, key, [entries[i] for i in blocks])
    try:
        yield
    finally:
        for key, entries in lists.items():
            setattr(config, key, entries)
