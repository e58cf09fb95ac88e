"""Texts that a model writes: drawn from its whole distribution, a function of the seed, the global state left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.completion import generation
from slimexp.completion.generation import (
    Decoding,
    generate_by_decode_loop,
    generate_by_transformers,
    generate_ids,
    is_finished,
    up_to_eos,
)
from slimexp.decode.base import Decoder
from slimexp.decode.kept import KeptDecoder
from slimexp.loss.base import IGNORE
from slimexp.model.loading import Pretrained
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask

Make = Callable[..., Any]
ROWS = [("one", "one", None), ("three and four", "two", None), ("two words", "three", None)]


def way(temperature: float = 1.0, beams: int = 1, longest: int = 6) -> Decoding:
    return Decoding(temperature=temperature, beams=beams, longest=longest)


def of_family(family: Any, how: Decoding, seed: int = 0) -> list[list[int]]:
    batch = family.encode(ROWS)
    if family.task == "causal_lm":
        batch = {name: tensor[:, :3] for name, tensor in batch.items()}
    return generate_ids(family, batch["input_ids"], batch["attention_mask"], how, [seed])


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
@pytest.mark.parametrize(
    "own",
    [
        {"top_k": 1, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
        {"min_p": 0.9, "suppress_tokens": list(range(5, 40)), "bad_words_ids": [[token] for token in range(40, 60)]},
        {"min_new_tokens": 6, "forced_eos_token_id": 1, "length_penalty": 9.0, "eos_token_id": list(range(3, 60))},
    ],
    ids=lambda own: next(iter(own)),
)
def test_settings_of_the_model_change_no_distribution(tiny: Make, task: str, own: dict[str, Any]) -> None:
    """transformers fills in whatever a caller of ``generate`` leaves open from the model's own settings."""
    family, plain = tiny(task), tiny(task)
    ends = {name: value for name, value in own.items() if name == "eos_token_id"}
    plain.model.generation_config.update(**ends)
    family.model.generation_config.update(**own)
    before = family.model.generation_config.to_dict()
    for how in (way(), way(temperature=0), way(temperature=0, beams=2)):
        assert of_family(family, how) == of_family(plain, how)
    assert family.model.generation_config.to_dict() == before


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_every_row_and_seed_has_a_draw_of_its_own(tiny: Make, task: str) -> None:
    family = tiny(task)
    assert len({tuple(text) for seed in range(4) for text in of_family(family, way(), seed)}) == 12


def test_tokens_are_drawn_as_often_as_they_are_likely(tiny: Make) -> None:
    family = tiny("causal_lm")
    prompts = torch.full((4000, 1), 7)
    texts = generate_ids(family, prompts, torch.ones_like(prompts), way(temperature=0.25, longest=1), [3])
    with torch.no_grad():
        expected = (family.model(prompts[:1]).logits[0, -1].double() / 0.25).softmax(-1)
    found = torch.bincount(torch.tensor([text[0] for text in texts]), minlength=len(expected)) / 4000
    error = (expected * (1 - expected) / 4000).sqrt()
    assert ((found - expected).abs() < 5 * error + 1e-3).all()


def test_texts_end_at_the_token_that_ends_them(tiny: Make) -> None:
    end = frozenset({1})
    assert up_to_eos([5, 6, 1, 0, 0], end) == [5, 6, 1] and up_to_eos([5, 0, 6], end) == [5, 0, 6]
    family = tiny("seq2seq")
    assert is_finished([5, 1], family) and not is_finished([5, 6], family) and not is_finished([], family)


# --- the decode loop --------------------------------------------------------------------------------------------------


def llama(tiny: Make) -> Any:
    return tiny("causal_lm")


def gpt(tiny: Make) -> Any:
    return tiny("causal_lm", model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64)


def compressed(tiny: Make) -> Any:
    """A student with masks, quantizers over masks, and rounded inputs."""
    family = tiny("causal_lm")
    for number, layer in enumerate(family.compressible().values()):
        attach(layer, "weight", mask := Mask(shape=layer.weight.shape))
        mask.mask[:, number % 2 :: 2] = False
        if number % 2:
            attach(layer, "weight", MinMax(bits=4, group_size=16))
    return family


def zoo(tiny: Make) -> Any:
    return Pretrained(path="zoo:llama_python_source", max_length=128).load(task="causal_lm", texts=tuple, labels=())


@pytest.mark.parametrize(
    ("make", "temperature"),
    [(llama, 0.0), (llama, 1.0), (gpt, 0.0), (gpt, 1.0), (compressed, 0.0), (compressed, 1.0), (zoo, 0.0)],
)
def test_the_decode_loop_writes_what_generate_writes(tiny: Make, make: Make, temperature: float) -> None:
    family = make(tiny)
    how = way(temperature, longest=16 if make is zoo else 40)
    prompts = torch.randint(5, 100, (3, 6), generator=torch.Generator().manual_seed(1))
    ends = family.model.generation_config
    free = generate_by_transformers(family, prompts, torch.ones_like(prompts), how, [0])
    ends.eos_token_id = [int(free[0, 9]), int(free[1, 16])]
    kept = KeptDecoder(least=50)
    for seed in (0, 1):
        right = generate_by_transformers(family, prompts, torch.ones_like(prompts), how, [seed])
        found = generate_by_decode_loop(family, prompts, how, [seed], kept)
        assert found is not None and found.tolist() == right.tolist()
    texts = generate_ids(family, prompts, torch.ones_like(prompts), how, [0])
    assert len({len(text) for text in texts}) > 1, "texts should end at unlike steps"


def test_a_draw_of_the_loop_is_a_function_of_its_seed(tiny: Make) -> None:
    """Whether its step is recorded for this batch, which draws numbers, or was for another one."""
    family, kept = tiny("causal_lm"), KeptDecoder()
    family.model.train()
    prompts = torch.full((3, 4), 7)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again = (generate_by_decode_loop(family, prompts, way(), [3], kept) for _ in range(2))
    other = generate_by_decode_loop(family, prompts, way(), [4], kept)
    alone = generate_by_decode_loop(family, prompts, way(), [3])
    assert first is not None and again is not None and other is not None and alone is not None
    assert first.tolist() == again.tolist() == alone.tolist() != other.tolist()
    assert torch.equal(torch.get_rng_state(), state) and family.model.training


def test_recording_draws_numbers_of_its_own(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    family, kept = tiny("causal_lm"), KeptDecoder()
    prompts = torch.full((3, 4), 7)
    right = generate_by_decode_loop(family, prompts, way(), [3])

    def recorded(decoder: Decoder) -> Callable[[], None]:
        torch.rand(7)
        return decoder.steps.step

    monkeypatch.setattr(Decoder, "_recorded", recorded)
    found = generate_by_decode_loop(family, prompts, way(), [3], kept)
    assert found is not None and right is not None and torch.equal(found, right)


@pytest.mark.parametrize(
    ("task", "how", "loops"),
    [
        ("causal_lm", way(), True),
        ("causal_lm", way(0, beams=2), False),
        ("seq2seq", way(), False),
    ],
)
def test_who_writes_through_the_loop(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, task: str, how: Decoding, loops: bool
) -> None:
    family = tiny(task)
    assert not generation._loops(family, torch.ones(2, 3), how)
    monkeypatch.setattr(generation, "_LOOPS_ON", {"cpu"})
    assert generation._loops(family, torch.ones(2, 3), how) is loops
    assert not generation._loops(family, torch.tensor([[1, 1], [1, 0]]), how)
    family.model.generation_config.forced_bos_token_id = 5
    assert not generation._loops(family, torch.ones(2, 3), how)


@pytest.mark.parametrize("able", [True, False])
def test_what_the_loop_cannot_run_is_written_by_generate(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], able: bool
) -> None:
    family, kept = tiny("causal_lm"), KeptDecoder()
    monkeypatch.setattr(generation, "_LOOPS_ON", {"cpu"})
    monkeypatch.setattr(type(family.model), "_can_compile_fullgraph", able)
    calls: list[int] = []
    generate = family.model.generate
    monkeypatch.setattr(family.model, "generate", lambda **given: calls.append(1) or generate(**given))
    prompts = torch.full((3, 4), 7)
    texts = [generate_ids(family, prompts, torch.ones_like(prompts), way(), [seed], kept) for seed in (1, 2)]
    said = capsys.readouterr().out
    assert len(calls) == (0 if able else 2) and said.count("slower") == (0 if able else 1)
    monkeypatch.undo()
    assert texts == [generate_ids(family, prompts, torch.ones_like(prompts), way(), [seed]) for seed in (1, 2)]


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_gpu_writes_through_the_loop(tiny: Make, monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Recorded once, seeing what is trained; draws depend on the seed alone."""
    family, how, kept = tiny("causal_lm"), way(temperature, longest=40), KeptDecoder(least=50)
    family.model.cuda()
    family.model.generation_config.eos_token_id = None
    prompts = torch.randint(5, 100, (4, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompts)
    made: list[Decoder] = []
    original = Decoder._recorded

    def counting(decoder: Decoder) -> Callable[[], None]:
        made.append(decoder)
        return original(decoder)

    monkeypatch.setattr(Decoder, "_recorded", counting)
    texts = []
    for number in range(2):
        with torch.no_grad():
            for parameter in family.model.parameters():  # in place, as an optimizer's step
                parameter.add_(number * torch.randn_like(parameter))
        texts.append(generate_ids(family, prompts, mask, how, [1], kept))
        assert texts[-1] == generate_ids(family, prompts, mask, how, [1], kept)
        right = generate_by_transformers(family, prompts, mask, how, [1])[:, 6:]
        if temperature == 0:  # a near tie may fall the other way
            assert (torch.tensor(texts[-1]) == right.cpu()).float().mean() > 0.8
    assert len(made) == 1 and texts[0] != texts[1]


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
