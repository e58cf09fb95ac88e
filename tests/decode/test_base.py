"""The decode loop generates the tokens that transformers generates, whichever way it runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from slimexp.decode.base import Decoder
from slimexp.decode.static_cache import Captured
from slimexp.model.cache import round_cache
from slimexp.model.widths import KEY

Make = Callable[..., PreTrainedModel]


ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gpt2"]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, model_of: Make) -> PreTrainedModel:
    """A model of random weights whose texts, of three rows, end at unlike steps."""
    if request.param == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=67, n_embd=64, n_layer=2, n_head=2, initializer_range=0.3)
        return ending(GPT2LMHeadModel(config).eval(), 2, 21, 37)
    return ending(model_of(request.param), 2, 21, 37)


def prompts(rows: int = 3, length: int = 9) -> Tensor:
    return torch.randint(67, (rows, length), generator=torch.Generator().manual_seed(1))


def ending(model: PreTrainedModel, *steps: int) -> PreTrainedModel:
    """The model, each row of whose likeliest text ends at such a step, or before it."""
    model.generation_config.eos_token_id = None
    free = expected(model, prompts(len(steps)), 40, 0.0)[:, 9:]
    model.generation_config.eos_token_id = [int(row[step]) for row, step in zip(free, steps, strict=True)]
    return model


def expected(model: PreTrainedModel, ids: Tensor, count: int, temperature: float) -> Tensor:
    draw = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    ends = model.generation_config.eos_token_id
    settings = GenerationConfig(
        do_sample=temperature > 0, max_new_tokens=count, pad_token_id=66, eos_token_id=ends, **draw
    )
    output: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)  # type: ignore[operator]
    return output


@pytest.mark.parametrize("model", ARCHITECTURES, indirect=True)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_are_those_of_generate(model: PreTrainedModel, temperature: float) -> None:
    """Token for token, also where they are drawn: transformers draws by the same numbers, in another form."""
    decoder = Decoder(model, 64, rows=3, temperature=temperature)
    for count, length in ((40, 9), (33, 5), (1, 1), (50, 9)):  # the second and later ones over what was left
        ids = prompts(3, length)
        torch.manual_seed(3)
        right = expected(model, ids, count, temperature)
        torch.manual_seed(3)
        assert decoder.generate(ids, count, pad_id=66).tolist() == right.tolist()
        if (count, temperature) == (40, 0.0):
            assert (right[:, 9:] == 66).sum(1).unique().numel() > 1, "rows should end at unlike steps"


@pytest.mark.parametrize(
    "unlike",
    [
        {"heads": {"decoder": [0, 2]}},
        {"ffn": {"decoder": [0, 160]}},
        {"heads": {"decoder": [0, 2]}, "attention_rank": {"decoder": [8, 0]}},
    ],
)
def test_blocks_without_attention_or_neurons_are_decoded(model_of: Make, unlike: dict[str, Any]) -> None:
    model = model_of("llama", **{KEY: unlike})
    right = expected(model, prompts(3), 20, 0.0)
    assert Decoder(model, 64, rows=3).generate(prompts(3), 20, pad_id=66).tolist() == right.tolist()


@pytest.mark.parametrize("bits", [None, 8])
def test_blocks_of_unlike_heads_keep_as_many_keys_and_values(model_of: Make, bits: int | None) -> None:
    model = model_of("llama", **{KEY: {"heads": {"decoder": [1, 2]}}})
    right = expected(model, prompts(3), 20, 0.0)
    if bits is None:
        decoder = Decoder(model, 64, rows=3)
        assert decoder.generate(prompts(3), 20, pad_id=66).tolist() == right.tolist()
        assert [layer.keys.shape[1] for layer in decoder.steps.cache.layers] == [1, 2]  # type: ignore[union-attr]
    else:
        round_cache(model, bits)
        assert expected(model, prompts(3), 20, 0.0).shape == right.shape


def test_a_text_ends_for_the_next_look_not_for_the_next_token(model_of: Make) -> None:
    model = ending(model_of("llama"), 2, 3, 4)
    decoder = Decoder(model, 80, rows=3)
    assert decoder.generate(prompts(), 70).shape[1] <= 9 + 5
    assert int(decoder.steps.position) == 8 + 32


@pytest.mark.fast
def test_prompts_that_do_not_fit_are_refused(model_of: Make) -> None:
    decoder = Decoder(model_of("llama"), 16, rows=2)
    assert decoder.reason == "the kernels run on a GPU, and the model is on cpu"
    with pytest.raises(ValueError, match=r"prompts are 2 sequences of 1 to 15 tokens, \[2, T\], got \[3, 4\]"):
        decoder.generate(prompts(3, 4), 2)
    with pytest.raises(ValueError, match=r"14 \+ 3 tokens must be more than the prompt and fit into length 16"):
        decoder.generate(prompts(2, 14), 3)
    with pytest.raises(ValueError, match="rows must be >= 1, got 0"):
        Decoder(model_of("llama"), 16, rows=0)


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


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_on_a_gpu(model_of: Make, temperature: float) -> None:
    """A graph draws the numbers that the step draws by itself, and sees weights that are changed in place."""
    model = model_of("llama", "cuda")
    model.generation_config.eos_token_id = None
    decoder = Decoder(model, 64, rows=3, temperature=temperature)
    assert decoder.label == Captured.label and decoder.reason == "the kernels decode one sequence, not 3"
    ids = prompts().cuda()
    for factor in (1.0, 0.5):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(factor)
        torch.manual_seed(3)
        found = decoder.generate(ids, 40)
        torch.manual_seed(3)
        steps = Captured(model, 64, rows=3, temperature=temperature)
        steps.prefill(ids)
        for _ in range(40):
            steps.step()
        assert (found == steps.tokens[:, :49]).float().mean() > 0.9  # a near tie may fall the other way
