"""Rounded keys and values: the same numbers whether a text is read at once or by tokens, and integers between."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig, DynamicCache, EncoderDecoderCache, MistralConfig, StaticCache

from slimexp.measure.workload import Request
from slimexp.model.base import Family
from slimexp.model.cache import IntegerLayer, bytes_per_token, cache_bits, float_cache, require_cache, round_cache

Make = Callable[..., Any]
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
DECODERS = [("causal_lm", {}), ("seq2seq", {})]


def arguments(family: Family, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, "decoder_input_ids": ids} if family.task == "seq2seq" else {"input_ids": ids}


@torch.no_grad()
def at_once(family: Family) -> torch.Tensor:
    return family.model(**arguments(family, IDS), use_cache=False).logits


@pytest.fixture(params=[8, 4])
def bits(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.mark.parametrize(("task", "values"), DECODERS)
@torch.no_grad()
def test_token_by_token_is_all_at_once(task: str, values: dict[str, Any], bits: int, tiny: Make) -> None:
    family = tiny(task, **values)
    dense = at_once(family)
    round_cache(family.model, bits)
    expected = at_once(family)
    assert 0 < (expected - dense).norm() < (0.02 if bits == 8 else 0.2) * dense.norm()
    state: dict[str, Any] = {}
    if task == "seq2seq":
        state["encoder_outputs"] = family.model.get_encoder()(input_ids=IDS)
    parts = []
    for ids in (IDS[:, :4], *IDS[:, 4:].split(1, dim=1)):
        shown = {"decoder_input_ids" if task == "seq2seq" else "input_ids": ids}
        output = family.model(**shown, **state, use_cache=True)
        name = "cache" if "cache" in output else "past_key_values"
        state[name] = output[name]
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("task", "values"), DECODERS)
def test_what_is_kept_are_integers_of_so_many_bits(task: str, values: dict[str, Any], bits: int, tiny: Make) -> None:
    family = tiny(task, **values)
    floats = kept(family)
    round_cache(family.model, bits)
    cache = kept(family)
    inner = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    filled = [layer for layer in inner.layers if layer.get_seq_length()]
    assert filled and all(isinstance(layer, IntegerLayer) for layer in filled)
    for layer in filled:
        assert not layer.keys.is_floating_point() and layer.keys.dtype.itemsize == 1
        assert layer.keys.shape[-1] == 8 * bits // 8
    # of 8 entries, a scale of 2 bytes and a zero point of 1, beside 8 floats
    assert bytes_per_token(cache) / bytes_per_token(floats) == pytest.approx((bits + 3) / 32)


@torch.no_grad()
def kept(family: Family) -> Any:
    request = Request(family)
    request.prefill(IDS)
    request.decode(2)
    return request.cache


@pytest.mark.parametrize(("task", "values"), DECODERS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_that_of_reading_again_each_time(
    task: str, values: dict[str, Any], beams: int, bits: int, tiny: Make
) -> None:
    family = tiny(task, **values)
    round_cache(family.model, bits)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}
    options["attention_mask"] = torch.ones_like(IDS)
    again = family.model.generate(IDS, use_cache=False, **options)
    assert torch.equal(family.model.generate(IDS, **options), again)


def test_gradients_pass_straight_through(bits: int, tiny: Make) -> None:
    layer = IntegerLayer(bits)
    x, y = (torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    layer.update(x, y)
    new = x.clone().requires_grad_()
    keys, values = layer.update(new, y)
    keys.backward(torch.ones_like(keys))
    assert torch.equal(new.grad, torch.ones_like(new))
    assert torch.equal(keys[..., :3, :], keys[..., 3:, :]) and torch.equal(values[..., :3, :], values[..., 3:, :])
    family = tiny("causal_lm")
    round_cache(family.model, bits)
    family.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in family.model.parameters())


def test_within_float_cache_nothing_is_rounded(tiny: Make) -> None:
    family = tiny("causal_lm")
    dense = at_once(family)
    round_cache(family.model, 4)
    assert cache_bits(family.model.config) == 4
    with float_cache(family.model):
        assert torch.equal(at_once(family), dense)
    assert not torch.equal(at_once(family), dense)


def test_a_cache_that_cannot_be_rounded(tiny: Make) -> None:
    family = tiny("causal_lm")
    filled = DynamicCache(config=family.model.config)
    family.model(input_ids=IDS, past_key_values=filled, use_cache=True)
    round_cache(family.model, 8)
    for cache in (filled, StaticCache(config=family.model.config, max_cache_len=16)):
        with pytest.raises(ValueError, match="caches keys and values in 8 bits, which a filled or"):
            family.model(input_ids=IDS, past_key_values=cache, use_cache=True)


def test_refused_beforehand(tiny: Make) -> None:
    with pytest.raises(ValueError, match="a bert reads a text at once and caches no keys and values"):
        require_cache(BertConfig(), 8)
    windows = r"a mistral caches keys and values of sliding windows in DynamicSliding\w+, .*: set cache_bits=null"
    with pytest.raises(ValueError, match=windows):
        require_cache(MistralConfig(sliding_window=8), 8)
    with pytest.raises(ValueError, match="a head has 5: set cache_bits=8"):
        require_cache(tiny("seq2seq", d_kv=5).model.config, 4)
    for task, _ in DECODERS:
        require_cache(tiny(task).model.config, 4)
