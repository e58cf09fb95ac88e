"""Documents of one row do not see each other: the same loss and gradients as in rows of their own."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from slimexp.loss.base import IGNORE
from slimexp.model import packed
from slimexp.model.base import PackedRow
from slimexp.model.causal_lm import CausalLm

Tiny = Callable[..., CausalLm]
TEXTS = ["one", "two words", "and then three words", "x", "the last of them"]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BLOOM = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"model_type": "qwen2", **SMALL},
    "gpt2": GPT2,
    "opt": {"model_type": "opt", **SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "windowed mistral": {"model_type": "mistral", **SMALL, "sliding_window": 4},
    "gemma3": {"model_type": "gemma3_text", **SMALL, "head_dim": 8, "sliding_window": 4},
}


def rows(family: CausalLm, *rows_of_texts: list[str]) -> list[PackedRow]:
    packed_rows = []
    for texts in rows_of_texts:
        ids = family.token_ids(texts)
        lengths = np.array([len(document) for document in ids], dtype=np.int32)
        packed_rows.append((np.concatenate(ids).astype(np.int32), lengths))
    return packed_rows


def loss_and_gradients(family: CausalLm, teacher: CausalLm, batch: dict[str, Tensor]) -> list[Tensor]:
    """Cross-entropy, divergence from the teacher and distance from its hidden states: their sum and its gradients."""
    with torch.no_grad():
        target, target_states = teacher.forward(batch, hidden=True)
    logits, states = family.forward(batch, hidden=True)
    real = batch["labels"] != IGNORE
    loss = functional.cross_entropy(logits[real], batch["labels"][real])
    divergence = functional.kl_div(logits[real].log_softmax(-1), target[real].softmax(-1), reduction="batchmean")
    pairs = zip(states["decoder"], target_states["decoder"], strict=True)
    total = loss + divergence + torch.stack([(one - other).square().mean() for one, other in pairs]).sum()
    family.model.zero_grad()
    total.backward()
    return [total.detach(), *(p.grad.clone() for p in family.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_batch_gives_the_loss_and_gradients_of_its_documents_alone(tiny: Tiny, name: str) -> None:
    family, teacher = tiny("causal_lm", **MODELS[name]), tiny("causal_lm", **MODELS[name])
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert family.packs() and teacher.packs()
    apart = family.encode([(text, None, None) for text in TEXTS])
    together = family.pack(rows(family, TEXTS[:3], TEXTS[3:]), multiple=8)
    assert (together["labels"] != IGNORE).sum() == (apart["labels"] != IGNORE).sum()
    for expected, found in zip(*(loss_and_gradients(family, teacher, b) for b in (apart, together)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        BLOOM,
        {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1},
        {"model_type": "lfm2", **SMALL, "full_attn_idxs": [1], "block_multiple_of": 8},
    ],
    ids=lambda config: config["model_type"],
)
def test_a_model_that_carries_a_state_or_counts_on_is_found_out(tiny: Tiny, config: dict[str, Any]) -> None:
    assert not tiny("causal_lm", **config).packs()


def test_a_leak_is_found_out_whatever_the_architecture(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny("causal_lm")
    assert family.packs()
    monkeypatch.setattr(packed, "inputs", lambda positions, way: {"position_ids": None, "attention_mask": None})
    assert not family.packs()


def test_one_mask_serves_where_all_layers_attend_alike_and_else_transformers_derives_them(tiny: Tiny) -> None:
    """One mask asks nothing of the GPU in return."""
    assert packed.separation(tiny("causal_lm").model) == "mask"
    assert packed.separation(tiny("causal_lm", **MODELS["gemma3"]).model) == "positions"
    assert packed.separation(tiny("causal_lm", attn_implementation="eager").model) == "positions"


def test_positions_restart_and_the_first_token_of_a_document_is_not_predicted(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    batch = family.pack([(np.arange(3, 11, dtype=np.int32), np.array([3, 1, 4], dtype=np.int32))], multiple=5)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4, 5]]  # padding counts on, and is not read
    assert batch["labels"].tolist() == [[4, 5, IGNORE, IGNORE, 8, 9, 10, IGNORE, IGNORE, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1] * 8 + [0] * 2]


@pytest.mark.fast
@pytest.mark.parametrize("length", range(1, 10))
def test_windows_overlap_by_one_token(length: int) -> None:
    windows = packed.windows(list(range(length)), 4)
    assert [token for window in windows for token in window[1:]] == list(range(1, length))
    assert all(2 <= len(window) <= 4 for window in windows) or length == 1
    assert all(later[0] == earlier[-1] for earlier, later in pairwise(windows))


def test_a_batch_without_padding_needs_no_mask(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    batch = family.encode([("same", None, None), ("size", None, None)])
    assert batch["attention_mask"].all()
    expected, _ = family.forward(batch)
    found, _ = family.forward({name: tensor for name, tensor in batch.items() if name != "attention_mask"})
    torch.testing.assert_close(found, expected)
