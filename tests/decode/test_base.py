"""The decode loop generates the tokens that transformers generates, whichever way it runs."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from slimexp.decode.base import Decoder

Make = Callable[..., PreTrainedModel]


@pytest.mark.fast
def test_a_model_on_the_cpu_is_refused(model_of: Make) -> None:
    with pytest.raises(ValueError, match="CUDA"):
        Decoder(model_of("llama"), 16)


@pytest.mark.fast
def test_a_model_whose_cache_is_rounded_is_refused(model_of: Make) -> None:
    model = model_of("llama")
    model.config.cache_bits = 8
    with pytest.raises(ValueError, match="the decode loop caches keys and values as floats, and this model in 8 bits"):
        Decoder(model, 16)


@pytest.mark.gpu
def test_prompts_of_any_length_are_read_as_they_are(model_of: Make) -> None:
    pytest.importorskip("triton")
    model = model_of("llama", "cuda")
    _reads_prompts(model)


@pytest.mark.gpu
def test_a_prompt_as_long_as_the_window_is_read(model_of: Make) -> None:
    pytest.importorskip("triton")
    _reads_prompts(model_of("mistral", "cuda", sliding_window=100))


def _reads_prompts(model: PreTrainedModel) -> None:
    decoder = Decoder(model, 100)
    for count in (2, 17, 70, 33, 99):  # graphs of 32, 96 and 99, what fits
        ids = torch.randint(67, (1, count), generator=torch.Generator().manual_seed(count)).cuda()
        decoder.prefill(ids)
        decoder.decode(1)
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0, -1]
        assert (decoder.steps.logits - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generating_on_a_gpu(model_of: Make, temperature: float) -> None:
    for model in (
        model_of("llama", "cuda"),
        GPT2LMHeadModel(GPT2Config(vocab_size=67, n_embd=64, n_layer=2, n_head=2)).cuda().eval(),  # type: ignore[call-arg]
    ):
        model.generation_config.eos_token_id = None
        ids = torch.randint(67, (1, 9), device="cuda")
        decoder = Decoder(model, 64, temperature=temperature)
        generated = decoder.generate(ids, 40)
        assert generated.shape == (1, 49) and (generated[0, :9] == ids[0]).all()
        if temperature == 0:
            expected = model.generate(ids, max_new_tokens=40, do_sample=False)
            assert (generated == expected).float().mean() > 0.9  # a near tie may fall the other way
        with pytest.raises(ValueError, match="length 64"):
            decoder.generate(ids, 60)
