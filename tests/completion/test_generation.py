"""Texts that a model writes: drawn from its whole distribution, a function of the seed, the global state left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.completion.generation import Decoding, finished, until, written
from slimexp.loss.base import IGNORE

Make = Callable[..., Any]
ROWS = [("one", "one", None), ("three and four", "two", None), ("two words", "three", None)]


def way(temperature: float = 1.0, beams: int = 1, longest: int = 6) -> Decoding:
    return Decoding(temperature=temperature, beams=beams, longest=longest)


def of_family(family: Any, how: Decoding, seed: int = 0) -> list[list[int]]:
    batch = family.encode(ROWS)
    if family.task == "causal_lm":
        batch = {name: tensor[:, :3] for name, tensor in batch.items()}
    return written(family, batch["input_ids"], batch["attention_mask"], how, [seed])


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_a_draw_is_a_function_of_its_seed(tiny: Make, task: str) -> None:
    family = tiny(task)
    family.model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    texts = of_family(family, way())
    assert torch.equal(torch.get_rng_state(), state) and family.model.training
    torch.rand(3)
    assert of_family(family, way()) == texts != of_family(family, way(), seed=1)
    assert all(1 <= len(text) <= 6 for text in texts)
    assert all(parameter.grad is None for parameter in family.model.parameters())


def test_the_likeliest_text_is_what_each_pass_says(tiny: Make) -> None:
    """Greedy text, read again as labels, is the likeliest token at every place."""
    family = tiny("seq2seq")
    batch = family.encode(ROWS)
    texts = of_family(family, way(temperature=0))
    ids, real = family.pad(texts)
    with torch.no_grad():
        logits, _ = family.forward({**batch, "labels": ids.masked_fill(real == 0, IGNORE)})
    assert torch.equal(logits.argmax(-1)[real == 1], ids[real == 1])


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_settings_of_the_model_cut_nothing_off(tiny: Make, task: str) -> None:
    """Its own ``top_k`` would leave the likeliest token alone."""
    family = tiny(task)
    family.model.generation_config.update(top_k=1, repetition_penalty=5.0, no_repeat_ngram_size=1)
    assert len({tuple(text) for seed in range(4) for text in of_family(family, way(), seed)}) == 12
    assert of_family(family, way()) == of_family(tiny(task), way())


def test_tokens_are_drawn_as_often_as_they_are_likely(tiny: Make) -> None:
    family = tiny("causal_lm")
    prompts = torch.full((4000, 1), 7)
    texts = written(family, prompts, torch.ones_like(prompts), way(temperature=0.25, longest=1), [3])
    with torch.no_grad():
        expected = (family.model(prompts[:1]).logits[0, -1].double() / 0.25).softmax(-1)
    found = torch.bincount(torch.tensor([text[0] for text in texts]), minlength=len(expected)) / 4000
    error = (expected * (1 - expected) / 4000).sqrt()
    assert ((found - expected).abs() < 5 * error + 1e-3).all()


def test_texts_end_at_the_token_that_ends_them(tiny: Make) -> None:
    end = frozenset({1})
    assert until([5, 6, 1, 0, 0], end) == [5, 6, 1] and until([5, 0, 6], end) == [5, 0, 6]
    family = tiny("seq2seq")
    assert finished([5, 1], family) and not finished([5, 6], family) and not finished([], family)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, r"temperature must be >= 0, got -1\.0"),
        ({"beams": 0}, "beams must be >= 1, got 0"),
        ({"beams": 4}, r"beams search for the likeliest text, and temperature=1\.0 draws one"),
        ({"longest": 0}, "longest must be >= 1 token, got 0"),
    ],
)
def test_what_is_no_way_to_write_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        way(**values)
