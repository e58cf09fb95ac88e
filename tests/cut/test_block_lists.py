"""What a config lists block by block follows the blocks that stay."""

import pytest
from transformers import Gemma2Config, LlamaConfig, Qwen3MoeConfig

from slimexp.cut.block_lists import only_blocks, renumber_blocks

KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@pytest.mark.fast
def test_blocks_keep_their_kind_of_attention() -> None:
    config = Gemma2Config(num_hidden_layers=4, layer_types=KINDS)
    renumber_blocks(config, [1, 2, 3])
    assert config.layer_types == KINDS[1:] and config.num_hidden_layers == 4


@pytest.mark.fast
@pytest.mark.parametrize(
    ("values", "dense"),
    [
        ({"decoder_sparse_step": 2}, [0, 1]),  # blocks 0 and 2 of four; 1 and 3 hold experts
        ({"mlp_only_layers": [3]}, [2]),
        ({}, []),
    ],
)
def test_blocks_stay_dense_or_mixtures_whatever_their_new_index(values: dict[str, object], dense: list[int]) -> None:
    config = Qwen3MoeConfig(num_hidden_layers=4, **values)  # type: ignore[arg-type]
    renumber_blocks(config, [0, 2, 3])
    assert config.mlp_only_layers == dense and config.decoder_sparse_step == 1


@pytest.mark.fast
def test_lists_are_back_whatever_happens() -> None:
    config = Gemma2Config(num_hidden_layers=4, layer_types=KINDS)
    with pytest.raises(RuntimeError), only_blocks(config, [0, 2]):
        assert config.layer_types == ["sliding_attention"] * 2
        raise RuntimeError
    assert config.layer_types == KINDS
    with only_blocks(LlamaConfig(), [0]):
        pass
