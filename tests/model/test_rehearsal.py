from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.model.base import IGNORE
from slimexp.model.rehearsal import rehearsed
from slimexp.model.surgery import remove

Tiny = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
MODELS = {
    "t5": ("seq2seq", {}),
    "t5 1.1": ("seq2seq", {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    "llama": ("causal_lm", {}),
    "qwen2": ("causal_lm", {"model_type": "qwen2"}),
    "bert": ("classification", {}),
}


@torch.no_grad()
def logits(family: Any) -> Tensor:
    batch = family.encode(ROWS)
    given, _ = family.forward(batch)
    return given[batch["labels"] != IGNORE]


def survivors(family: Any) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """A block of every stack gone, a third of the neurons, half of the channels, one of two groups of heads."""
    names = {module: name for name, module in family.model.named_modules()}
    blocks = [names[block] for stack in family.blocks().values() for block in stack]
    kept: dict[str, Any] = {"ffn": {block: torch.arange(0, 48, 3) + i % 3 for i, block in enumerate(blocks)}}
    if family.task != "classification":
        kept["hidden"] = {"": torch.arange(1, 32, 2)}
    if family.task == "causal_lm":
        kept["kv_heads"] = {block: torch.arange(8, 16) for block in blocks}
        kept["heads"] = {block: torch.arange(16, 32) for block in blocks}
    stays = 0 if family.task == "seq2seq" else 1  # T5's first holds the position table of all
    return {stack: [stays] for stack in family.blocks()}, kept


@pytest.mark.parametrize("name", MODELS)
def test_masked_is_removed(tiny: Tiny, name: str) -> None:
    task, values = MODELS[name]
    family = tiny(task, **values)
    with torch.no_grad():  # a residual stream far above the norms' epsilon
        family.model.get_input_embeddings().weight.mul_(50 if task == "causal_lm" else 1)
    before = logits(family)
    layers, kept = survivors(family)
    with rehearsed(family, layers, kept):
        masked = logits(family)
    torch.testing.assert_close(masked, logits(remove(family, layers, kept)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(masked, before, atol=1e-4)
    assert torch.equal(logits(family), before)


def test_it_ends_with_an_exception_too(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    before = logits(family)
    with pytest.raises(RuntimeError, match="stop"), rehearsed(family, *survivors(family)):
        raise RuntimeError("stop")
    assert torch.equal(logits(family), before)
