"""What is written of a model: plain weights, each once, within the range of their type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    LlamaConfig,
    MixtralConfig,
    T5Config,
)

from slimexp.loss.base import IGNORE
from slimexp.model.base import Family
from slimexp.model.saving import save_training, save_weights
from slimexp.quantizer.minmax import MinMax
from slimexp.serialization.shards import Reader
from slimexp.weight.attachment import attach, attached
from slimexp.weight.mask import Mask, unpacked_bits

Make = Callable[..., Any]
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@torch.no_grad()
def logits(family: Family) -> Tensor:
    """At real tokens."""
    batch = family.encode([("one", "two!", 0), ("three and four", "5", 1)])
    return family.forward(batch)[0][batch["labels"] != IGNORE]


def masked(family: Family) -> Family:
    """``family`` with every other input of every layer masked."""
    for layer in family.compressible().values():
        mask = Mask(shape=layer.weight.shape)
        mask.mask[:, ::2] = False
        attach(layer, "weight", mask)
    family.model.eval()
    return family


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_what_is_loaded_again_is_the_masked_model(tiny: Make, task: str, tmp_path: Path) -> None:
    family = masked(tiny(task))
    save_weights(family.model, tmp_path, torch.float32)
    plain = type(family.model).from_pretrained(tmp_path).eval()
    assert list(attached(plain)) == [] and type(plain).__module__.startswith("transformers")
    torch.testing.assert_close(
        logits(type(family)(plain, family.tokenizer, max_length=64)), logits(family), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("config", [
    LlamaConfig(**SMALL, tie_word_embeddings=True),
    LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    BartConfig(vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
               decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64),
], ids=["tied", "biases", "experts", "t5", "bart"])  # fmt: skip
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_the_files_hold_what_transformers_would_save(config: Any, max_shard_bytes: int, tmp_path: Path) -> None:
    """Experts are one tensor in the model, and one tensor each in its files."""
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).bfloat16().eval()
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_weights(model, tmp_path / "ours", torch.bfloat16, max_shard_bytes=max_shard_bytes)
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    with Reader(tmp_path / "ours") as reader:
        assert reader.keys() == expected.keys()
        assert all(torch.equal(reader[name], tensor) for name, tensor in expected.items())
    assert (len(list((tmp_path / "ours").glob("*.safetensors"))) > 1) == (max_shard_bytes < 10**9)
    files = [(tmp_path / name / "config.json").read_text() for name in ("ours", "theirs")]
    assert files[0] == files[1]
    again = auto.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("packs", [False, True])
def test_a_weight_beyond_the_range_of_its_type_is_refused(packs: bool, tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    if packs:
        for layer in family.compressible().values():
            attach(layer, "weight", MinMax(bits=8, group_size=None))
    family.model.model.norm.weight.data[0] = 1e5
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' holds 1e\+05, and float16 at most 65504"):
        save_weights(family.model, tmp_path, torch.float16)
    save_weights(family.model, tmp_path, torch.bfloat16)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"][0] == torch.tensor(1e5).bfloat16()


def test_training_state_holds_every_tensor_once(tiny: Make, tmp_path: Path) -> None:
    family = masked(tiny("seq2seq"))
    save_training(family.model, tmp_path / "a")
    stored, state = load_file(tmp_path / "a"), family.model.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(stored) < len(state)  # the embedding is tied
    for name, tensor in stored.items():
        assert torch.equal(unpacked_bits(tensor, state[name].shape) if name.endswith(".mask") else tensor, state[name])
