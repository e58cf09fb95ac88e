"""Steps over a cache of fixed size give the tokens and logits of transformers, beyond sliding windows too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from slimexp.decode.base import Decoder
from slimexp.decode.static_cache import Captured

Make = Callable[..., PreTrainedModel]


def test_steps_over_a_static_cache_are_those_of_generate(model_of: Make) -> None:
    model = model_of("llama")
    ids = torch.randint(67, (1, 9), generator=torch.Generator().manual_seed(1))
    steps = Captured(model, 24)
    for _ in range(2):  # the second time over what the first left
        steps.prefill(ids)
        for _ in range(12):
            steps.step()
        expected = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        assert steps.tokens[0, :21].tolist() == expected[0].tolist()


def windowed(sizes: dict[str, Any]) -> PreTrainedModel:
    """A model whose every other block looks back 8 positions only."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=32, sliding_window=8)).eval()


def test_steps_go_on_beyond_a_sliding_window_as_one_and_the_same_work(sizes: dict[str, Any]) -> None:
    """A graph repeats what its first step did: no layer may change its way when the window is full."""
    model = windowed(sizes)
    steps = Captured(model, 40)
    assert not any(steps.cache.is_sliding)
    steps.prefill(torch.randint(67, (1, 5), generator=torch.Generator().manual_seed(1)))
    for _ in range(30):
        steps.step()
        with torch.no_grad():
            expected = model(input_ids=steps.tokens[:, : int(steps.position)]).logits[0, -1]
        assert steps.logits is not None
        torch.testing.assert_close(steps.logits[0, -1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_graph_decodes_beyond_a_sliding_window(sizes: dict[str, Any]) -> None:
    model = windowed(sizes).cuda()  # type: ignore[call-arg]
    decoder = Decoder(model, 40)
    assert decoder.label == Captured.label
    decoder.prefill(torch.randint(67, (1, 5), generator=torch.Generator().manual_seed(1)).cuda())
    for _ in range(30):
        decoder.decode(1)
        with torch.no_grad():
            expected = model(input_ids=decoder.steps.tokens[:, : int(decoder.steps.position)]).logits[0, -1]
        assert decoder.steps.logits is not None
        assert (decoder.steps.logits[0, -1] - expected).norm() <= 1e-3 * expected.norm()
