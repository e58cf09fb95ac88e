"""What is written of a model: plain weights, each once, within the range of their type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slimexp.loss.base import IGNORE
from slimexp.model.base import Family
from slimexp.model.saving import folded, save_training, save_weights
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach, attached
from slimexp.weight.mask import Mask

Make = Callable[..., Any]


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
def test_folded_is_the_masked_model(tiny: Make, task: str) -> None:
    family = masked(tiny(task))
    plain = folded(family.model)
    assert list(attached(plain)) == [] and type(plain).__module__.startswith("transformers")
    torch.testing.assert_close(
        logits(type(family)(plain, family.tokenizer, max_length=64)), logits(family), atol=1e-6, rtol=1e-6
    )


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
    assert all(torch.equal(tensor, state[name]) for name, tensor in stored.items())
