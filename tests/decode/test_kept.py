"""A decoder is kept while its recording holds: trained weights are seen, and replaced ones are recorded anew."""

import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from slimexp.decode.base import Decoder
from slimexp.decode.kept import KeptDecoder, refusal
from slimexp.model.masks import as_recorded
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask
from tests.technique.tape import Tape

Make = Callable[..., PreTrainedModel]
Change = Callable[[PreTrainedModel], object]
IDS = torch.randint(67, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Grows by what is recorded: decoders replay it, as they do a CUDA graph."""
    made: list[Tape] = []

    @torch.no_grad()
    def record(step: Callable[[], None]) -> Callable[[], None]:
        with as_recorded():
            step()
            with Tape() as tape:
                step()
        tape.undo()
        made.append(tape)
        return tape.replay

    monkeypatch.setattr(Decoder, "_recorded", lambda decoder: decoder._replayed(record))
    return made


def text(kept: KeptDecoder, model: PreTrainedModel, rows: int = 2, *, length: int = 24) -> Tensor:
    decoder = kept.of(model, length=length, rows=rows, temperature=0.0)
    assert decoder is not None
    return decoder.generate(IDS[:rows], 12)


def right(model: PreTrainedModel, rows: int = 2) -> Tensor:
    """What the step itself decodes."""
    steps = Decoder(model, 24, rows=rows).steps
    steps.prefill(IDS[:rows])
    for _ in range(12):
        steps.step()
    return steps.tokens[:, :17]


def down(model: PreTrainedModel) -> Any:
    return model.model.layers[0].mlp.down_proj


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """The model after a step of an optimizer, which changes weights in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    return model


@torch.no_grad()
def moved(model: PreTrainedModel) -> None:
    down(model).weight.data = down(model).weight.data * -1.0


def replaced(model: PreTrainedModel) -> None:
    down(model).weight = nn.Parameter(-down(model).weight.detach())


@torch.no_grad()
def narrowed(model: PreTrainedModel) -> None:
    """Fewer neurons, in the memory of before."""
    mlp, few = model.model.layers[0].mlp, 80
    mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[:few]
    mlp.up_proj.weight.data = mlp.up_proj.weight.data[:few]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, :few].contiguous()


def masked(model: PreTrainedModel) -> None:
    attach(down(model), "weight", mask := Mask(shape=down(model).weight.shape))
    mask.mask[::2] = False


def another_layer(model: PreTrainedModel) -> None:
    model.model.layers[0].mlp.down_proj = nn.Linear(160, 128, bias=False)


def test_weights_that_are_trained_are_seen_by_the_same_recording(model_of: Make, tapes: list[Tape]) -> None:
    model, kept = model_of("llama"), KeptDecoder()
    model.generation_config.eos_token_id = None
    before = text(kept, model)
    assert len(tapes) == 1
    assert torch.equal(before, right(model))
    tapes.clear()  # right makes one
    after = text(kept, trained(model))
    assert not tapes
    assert torch.equal(after, right(model)) and not torch.equal(after, before)


@pytest.mark.parametrize("change", [moved, narrowed, replaced, masked, another_layer])
def test_what_is_replaced_is_recorded_anew(model_of: Make, tapes: list[Tape], change: Change) -> None:
    model, kept = model_of("llama"), KeptDecoder()
    model.generation_config.eos_token_id = None
    before, old = text(kept, model), kept.of(model, length=24, rows=2, temperature=0.0)
    change(model)
    after = text(kept, model)
    assert len(tapes) == 2
    assert torch.equal(after, right(model)) and not torch.equal(after, before)
    if change not in (moved, narrowed):  # a tape, unlike a CUDA graph, would follow these
        assert old is not None and not torch.equal(old.generate(IDS, 12), after), "this change needs no new recording"


def test_a_switch_of_a_quantizer_is_recorded_anew(model_of: Make, tapes: list[Tape]) -> None:
    model, kept = model_of("llama"), KeptDecoder()
    attach(down(model), "weight", mask := Mask(shape=down(model).weight.shape))
    attach(down(model), "weight", MinMax(bits=4, group_size=None))
    text(kept, model)
    mask.passes_gradient = True
    text(kept, model)
    assert len(tapes) == 2


def test_another_shape_is_recorded_anew_and_the_same_is_not(model_of: Make, tapes: list[Tape]) -> None:
    model, kept = model_of("llama"), KeptDecoder()
    for rows, length, count in ((2, 24, 1), (2, 24, 1), (1, 24, 2), (1, 30, 3), (1, 30, 3)):
        text(kept, model, rows, length=length)
        assert len(tapes) == count


def test_masked_and_quantized_students_are_recorded(model_of: Make, tapes: list[Tape]) -> None:
    model, kept = model_of("llama"), KeptDecoder()
    model.generation_config.eos_token_id = None
    masked(model)
    for layer in (down(model), model.model.layers[1].self_attn.q_proj):
        attach(layer, "weight", MinMax(bits=4, group_size=16))
    before = text(kept, model)
    assert torch.equal(before, right(model))
    made = len(tapes)
    names = " ".join(str(function) for function, *_ in tapes[0].operations)
    assert "index_copy" in names and "round" not in names, "weights should be rounded once a text"
    after = text(kept, trained(model))
    assert len(tapes) == made
    assert torch.equal(after, right(model)) and not torch.equal(after, before)


def test_nothing_is_left_after_release(model_of: Make) -> None:
    with KeptDecoder() as kept:
        decoder = kept.of(model_of("llama"), length=24, rows=2, temperature=0.0)
        assert decoder is not None
        known = weakref.ref(decoder.steps.cache)  # type: ignore[union-attr]
        del decoder
        assert known() is not None
    assert known() is None


# --- what is no CUDA graph --------------------------------------------------------------------------------------------


def state_space() -> PreTrainedModel:
    model = MambaForCausalLM(MambaConfig(vocab_size=67, hidden_size=16, num_hidden_layers=1, state_size=4))
    model._can_compile_fullgraph = True  # which says nothing of where its states lie
    return model


def not_declared() -> PreTrainedModel:
    config = GPTNeoConfig(vocab_size=67, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]])
    return GPTNeoForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (state_space, r"a mamba caches more than keys and values of every position \(LinearAttentionLayer\)"),
        (not_declared, "transformers does not declare that the step of a gpt_neo can be a CUDA graph"),
    ],
)
def test_a_model_that_cannot_be_recorded_is_told_of_once(
    make: Callable[[], PreTrainedModel], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, kept = make().eval(), KeptDecoder()
    for _ in range(2):
        assert kept.of(model, length=24, rows=2, temperature=0.0) is None
    assert re.fullmatch(f"  texts are written by transformers' generate, so slower: {why}\n", capsys.readouterr().out)


def test_a_cache_of_integers_is_left_to_generate(model_of: Make) -> None:
    model = model_of("llama")
    model.config.cache_bits = 8
    assert refusal(model) == "keys and values are cached in 8 bits"


def test_a_sliding_window_is_recorded(sizes: dict[str, Any]) -> None:
    """Its cache keeps every position, and the mask hides what lies outside of the window."""
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=32, sliding_window=4)).eval()
    model.generation_config.eos_token_id = None
    decoder = KeptDecoder().of(model, length=24, rows=2, temperature=0.0)
    assert decoder is not None
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(decoder.generate(IDS, 12), model.generate(IDS, **settings))  # type: ignore[operator]


def test_what_fails_in_recording_leaves_the_model_as_it_was(
    model_of: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of("llama")
    tried: list[Decoder] = []

    def fails(decoder: Decoder) -> Callable[[], None]:
        tried.append(decoder)
        decoder.model.model.layers[0].mlp.gate_proj._parameters["weight"] = nn.Parameter(torch.zeros(1))
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    gate = model.model.layers[0].mlp.gate_proj.weight
    monkeypatch.setattr(Decoder, "_recorded", fails)
    kept = KeptDecoder()
    assert [kept.of(model, length=24, rows=2, temperature=0.0) for _ in range(2)] == [None, None]
    assert len(tried) == 1, "what fails once is not tried for every batch"
    assert model.model.layers[0].mlp.gate_proj.weight is gate
    assert "RuntimeError: operation not permitted when stream is capturing" in capsys.readouterr().out


def test_memory_that_runs_out_in_recording_is_an_error(model_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(decoder: Decoder) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "_recorded", fails)
    with pytest.raises(torch.OutOfMemoryError):
        KeptDecoder().of(model_of("llama"), length=24, rows=2, temperature=0.0)


@pytest.mark.gpu
def test_memory_of_a_gpu_is_given_back(model_of: Make) -> None:
    model, large = model_of("llama", "cuda", max_position_embeddings=2**16), KeptDecoder(least=2**16)
    with KeptDecoder() as small:  # libraries allocate what they keep
        warm = small.of(model, length=24, rows=2, temperature=0.0)
        assert warm is not None
        warm.generate(IDS.cuda(), 2)
        del warm
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    decoder = large.of(model, length=2**16, rows=2, temperature=0.0)
    assert decoder is not None
    decoder.generate(IDS.cuda(), 12)
    bytes_of_cache = 2 * 2 * 2 * 2 * 2**16 * 32 * 4  # keys and values, blocks, rows, heads, positions, channels
    assert torch.cuda.memory_allocated() - before[0] > bytes_of_cache
    del decoder
    large.release()
    after = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    assert after[0] - before[0] < bytes_of_cache / 2 and after[1] - before[1] < bytes_of_cache / 2


@pytest.mark.gpu
def test_what_a_gpu_cannot_record_is_told_of_and_nothing_breaks(
    model_of: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    model, kept = model_of("llama", "cuda"), KeptDecoder()
    hook = down(model).register_forward_hook(lambda module, inputs, output: float(output.sum()) and None)
    assert kept.of(model, length=24, rows=2, temperature=0.0) is None
    assert "texts are written by transformers' generate" in capsys.readouterr().out
    hook.remove()
    torch.manual_seed(0)
    assert torch.rand(3, device="cuda").isfinite().all()  # random numbers go on
    decoder = KeptDecoder().of(model, length=24, rows=2, temperature=0.0)
    assert decoder is not None and decoder.generate(IDS.cuda(), 12).shape[0] == 2
