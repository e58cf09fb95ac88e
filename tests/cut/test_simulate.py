from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.architecture.base import EXPERT_FFN
from slimexp.architecture.model_type import architecture_of
from slimexp.cut.constraints import scopes
from slimexp.cut.experts import experts_in
from slimexp.cut.remove import remove
from slimexp.cut.shape import WIDTHS, ParameterCounter, rows_of_units, whole
from slimexp.cut.simulate import simulated
from slimexp.loss.base import IGNORE

Tiny = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
MIXTURE = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "q_lora_rank": 16,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("seq2seq", {}),
    "t5 1.1": ("seq2seq", {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    "llama": ("causal_lm", {}),
    "qwen2 untied": ("causal_lm", {"model_type": "qwen2", "tie_word_embeddings": False}),
    "gpt2": ("causal_lm", {"model_type": "gpt2", "n_inner": 48}),
    "bert": ("classification", {}),
    "deepseek": ("causal_lm", MIXTURE),
}


def model(tiny: Tiny, name: str) -> Any:
    """No two parameters of the same numbers."""
    task, values = MODELS[name]
    family = tiny(task, **values)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in family.model.parameters():
            parameter.add_(0.05 * torch.rand(parameter.shape, generator=generator))
    return family


def half(family: Any) -> tuple[dict[str, list[int]], dict[str, Any], dict[str, int]]:
    """One of two blocks and half of every width, other units in every scope; and their shape."""
    config = family.model.config
    dense = whole(config)
    units = {
        (word, scope): torch.randperm(dense[word], generator=torch.Generator().manual_seed(i))[
            : dense[word] // 2
        ].sort()
        for word in WIDTHS
        if word in dense
        for i, scope in enumerate([""] if word == "hidden" else scopes(family.model, word))
    }
    kept = {
        axis: {
            scope: (some.values[:, None] * rows + torch.arange(rows)).flatten()
            for (w, scope), some in units.items()
            if w == word
        }
        for axis, (word, rows) in rows_of_units(config).items()
        if word in dense
    }
    if EXPERT_FFN in kept:  # [experts, n]
        kept[EXPERT_FFN] = {
            part: torch.stack([(one + expert) % dense[EXPERT_FFN] for expert in range(experts_in(config, part))])
            .sort()
            .values
            for part, one in kept[EXPERT_FFN].items()
        }
    stays = 0 if architecture_of(config).first(config) is not None else 1
    shape = {word: 1 if word in family.blocks() else units // 2 for word, units in dense.items()}
    return {stack: [stays] for stack in family.blocks()}, kept, shape


@torch.no_grad()
def logits(family: Any) -> Tensor:
    batch = family.encode(ROWS)
    given, _ = family.forward(batch)
    return given[batch["labels"] != IGNORE]


@pytest.mark.parametrize("name", MODELS)
def test_masked_is_removed_and_counted(tiny: Tiny, name: str) -> None:
    family = model(tiny, name)
    before = logits(family)
    layers, kept, shape = half(family)
    with simulated(family, layers, kept):
        masked = logits(family)
    small = remove(family, layers, kept)
    torch.testing.assert_close(masked, logits(small), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(masked, before, atol=1e-4)
    assert torch.equal(logits(family), before)

    counter, every = (
        ParameterCounter(family.model),
        {stack: list(range(len(own))) for stack, own in family.blocks().items()},
    )
    assert counter.count(layers, shape) == size(small)
    assert counter.count(every, whole(family.model.config)) == size(family)
    assert 0 == counter.touched(every, whole(family.model.config)) < counter.touched(layers, shape) <= 1


def test_it_ends_with_an_exception_too(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    before = logits(family)
    layers, kept, _ = half(family)
    with pytest.raises(RuntimeError, match="stop"), simulated(family, layers, kept):
        raise RuntimeError("stop")
    assert torch.equal(logits(family), before)


def size(family: Any) -> int:
    return sum(parameter.numel() for parameter in family.model.parameters())
