"""The divergence against its definition in float64, and at the start."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.calibration import divergence
from slimexp.calibration.divergence import Divergence
from slimexp.model import base
from slimexp.technique.batches import calibration_batches


def test_answers_that_are_not_finite_name_their_batch(tiny: Callable[..., Any], corpus: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    batches = list(calibration_batches(corpus("causal_lm"), family, rows=2, seed=0))
    family.model.model.norm.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="the model answers with NaN or infinity in calibration batch 0"):
        Divergence(family, batches)


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_kullback_leibler_per_token_from_the_start(
    task: str, tiny: Callable[..., Any], corpus: Callable[..., Any]
) -> None:
    family = tiny(task)
    family.model.train()
    batches = list(calibration_batches(corpus(task), family, rows=5, seed=0))
    change = Divergence(family, batches)
    assert change() == 0
    assert family.model.training

    def answers() -> torch.Tensor:
        family.model.eval()
        with torch.no_grad():
            logits = [family.forward(batch)[0][batch["labels"] != -100] for batch in batches]
        return torch.cat(logits).double().softmax(-1)

    before, generator = answers(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in family.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    after = answers()
    expected = (before * (before / after).log()).sum(-1).mean().item()
    assert expected > 1e-3
    assert change() == pytest.approx(expected, rel=1e-3)


def test_logits_of_a_large_vocabulary_are_taken_in_parts(
    tiny: Callable[..., Any], corpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in parts give the same figure; beyond what is kept, tokens are spread evenly over the text."""
    family = tiny("causal_lm")
    batches = [family.encode([("one and two", None, None), ("three", None, None), ("four and", None, None)])]
    tokens, words = int((batches[0]["labels"] != -100).sum()), family.model.config.vocab_size
    whole = Divergence(family, batches)
    monkeypatch.setattr(base, "LOGITS", 1)
    parts = Divergence(family, batches)
    assert [len(answers) for answers in whole.before] == [tokens] and len(parts.before) == 3
    monkeypatch.setattr(divergence, "_ANSWERS", tokens * words // 2)
    thinned = Divergence(family, batches)
    assert 2 * sum(len(answers) for answers in thinned.before) == pytest.approx(tokens, abs=3)
    with torch.no_grad():
        family.model.lm_head.weight += 0.1 * torch.randn(family.model.lm_head.weight.shape)
    assert parts() == pytest.approx(whole(), rel=1e-4) and thinned() > 0
