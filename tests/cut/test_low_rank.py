"""Linear maps in the place of attention or feed-forward layers: the best of their rank, and what a cut makes of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.architecture.base import FFN, HEADS
from slimexp.cut.keep import Keep
from slimexp.cut.low_rank import LowRank, low_rank, regression
from slimexp.cut.proof import logits, randomize
from slimexp.cut.remove import remove
from slimexp.cut.simulate import simulated
from slimexp.model.base import Family
from slimexp.model.widths import KEY, widths_of

Tiny = Callable[..., Any]
NONE = 1e-12  # of dampening


def cut(**kept: Any) -> Keep:
    none = dict.fromkeys(name for name in Keep.__dataclass_fields__ if name != "calibration_batches")
    return Keep(**none | {"calibration_batches": 1} | kept)


def text(family: Family) -> list[Any]:
    rows = ["the cat sat on the mat", "a dog", "words of many other letters: jumps over fjord", "0123456789"]
    return [family.encode([(row, None, None) for row in rows[i : i + 2]]) for i in (0, 2)]


def sample(seed: int = 0, tokens: int = 64, channels: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return x, x.pow(2) @ torch.randn(channels, channels, generator=generator, dtype=torch.float64) + 3 * x


def error(low: LowRank, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((y - x @ (low.from_rank @ low.to_rank).double().T).square().sum())


@pytest.mark.fast
def test_a_linear_layer_is_found_again() -> None:
    x, _ = sample()
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = x @ weight.T
    full = regression(x.T @ x, x.T @ y, rank=8, dampening=NONE)
    torch.testing.assert_close(full.from_rank @ full.to_rank, weight.float(), atol=1e-4, rtol=1e-4)
    thin = weight[:, :2] @ weight[:2]
    narrow = regression(x.T @ x, x.T @ x @ thin.T, rank=2, dampening=NONE)
    torch.testing.assert_close(narrow.from_rank @ narrow.to_rank, thin.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.fast
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_no_map_of_the_rank_has_less_error(rank: int) -> None:
    """The least error is that of all components beyond the rank in whitened coordinates, and what no map explains."""
    x, y = sample()
    low = regression(x.T @ x, x.T @ y, rank=rank, dampening=NONE)
    q, _ = torch.linalg.qr(x)  # whitened inputs
    left = torch.linalg.svdvals(q.T @ y)[rank:].square().sum() + (y - q @ (q.T @ y)).square().sum()
    assert error(low, x, y) == pytest.approx(float(left), rel=1e-4)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        near = LowRank(*(part + 0.01 * torch.randn(part.shape, generator=generator) for part in low))
        assert error(near, x, y) > error(low, x, y)
    first = regression(x.T @ x, x.T @ y, rank=8, dampening=NONE).first(rank)
    assert error(first, x, y) == pytest.approx(error(low, x, y), rel=1e-4)


@pytest.mark.fast
def test_dampening_keeps_maps_finite_and_small() -> None:
    x, y = sample(tokens=4)  # fewer tokens than channels
    sizes = []
    for dampening in (1e-4, 1e-1):
        low = regression(x.T @ x, x.T @ y, rank=8, dampening=dampening)
        sizes.append(float((low.from_rank @ low.to_rank).norm()))
    assert sizes[0] > sizes[1] > 0
    zero = regression(torch.zeros(8, 8), torch.zeros(8, 8), rank=2)
    assert not (zero.from_rank @ zero.to_rank).any()


def test_maps_are_fitted_on_tokens_that_are_no_padding(tiny: Tiny) -> None:
    """A map is the same whatever the batches are padded to."""
    family = tiny("causal_lm")
    name = "model.layers.1.mlp"
    family.model.set_submodule(name, torch.nn.Linear(32, 32, bias=False))
    batches = text(family)
    [low] = low_rank(family, {name: 3}, batches).values()
    padded = [family.encode([("a dog", None, None)] * 2, multiple=64)]
    [alone] = low_rank(family, {name: 3}, padded).values()
    [bare] = low_rank(family, {name: 3}, [family.encode([("a dog", None, None)] * 2)]).values()
    torch.testing.assert_close(*(each.from_rank @ each.to_rank for each in (alone, bare)), atol=1e-4, rtol=1e-3)
    assert [part.shape for part in low] == [(3, 32), (32, 3)]


@pytest.mark.parametrize("hidden", [None, 16])
def test_a_cut_is_what_is_simulated(tiny: Tiny, hidden: int | None) -> None:
    family = randomize(tiny("causal_lm", num_hidden_layers=3))
    kept = cut(
        decoder_layers=[0, 2], heads={"decoder": [0, 2]}, attention_rank={"decoder": [4, 0]},
        ffn={"decoder": [0, 0]}, ffn_rank={"decoder": [0, 8]}, hidden=hidden,
    )  # fmt: skip
    batches, layers = text(family), {"decoder": [0, 2]}
    retained, maps = kept.choice(family, batches), kept.maps(family, batches)
    for axis in retained.keys() - {"hidden"}:  # of the block that goes as well
        retained[axis] = {**retained[axis], "model.layers.1": retained[axis]["model.layers.2"]}
    assert {name: len(low.to_rank) for name, low in maps.items()} == {
        "model.layers.0.self_attn": 4,
        "model.layers.2.mlp": 8,
    }
    small, before = kept.apply(family, batches), logits(family)
    assert small.model.config.slimexp_widths == {
        "heads": {"decoder": [0, 2]},
        "attention_rank": {"decoder": [4, 0]},
        "ffn": {"decoder": [0, 0]},
        "ffn_rank": {"decoder": [0, 8]},
    }
    with simulated(family, layers, retained, maps):
        expected = logits(family)
    torch.testing.assert_close(logits(small), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logits(family), before)  # the model is as it was
    assert {name for name in small.compressible() if "rank" in name} == {
        f"model.layers.{place}.{part}" for place in ("0.self_attn", "1.mlp") for part in ("to_rank", "from_rank")
    }


def test_a_model_with_maps_is_cut_again(tiny: Tiny) -> None:
    """Blocks, channels and tokens may go; heads and neurons not, as of all models of unlike widths."""
    family = randomize(tiny("causal_lm", num_hidden_layers=3))
    batches = text(family)
    kept = cut(heads={"decoder": [2, 0, 2]}, attention_rank={"decoder": [0, 4, 0]})
    small = kept.apply(family, batches)
    fewer = cut(decoder_layers=[0, 1], hidden=16)
    again = fewer.apply(small, batches)
    assert widths_of(again.model.config) == {HEADS: {"decoder": [2, 0]}, "attention_rank": {"decoder": [0, 4]}}
    with simulated(small, {"decoder": [0, 1]}, fewer.choice(small, batches)):
        torch.testing.assert_close(logits(again), logits(small), atol=1e-4, rtol=1e-3)
    assert not hasattr(cut(decoder_layers=[0, 2]).apply(small, batches).model.config, KEY)
    assert remove(small, {"decoder": [1]}, {"vocabulary": {"": torch.arange(100)}}).model.config.slimexp_widths
    with pytest.raises(ValueError, match=r"have unlike numbers of heads \(slimexp_widths"):
        cut(ffn=16).validate(small.model.config)
    with pytest.raises(ValueError, match=r"cut\.hidden must be >= 4, the largest rank of a map .*, got 3"):
        cut(hidden=3).validate(small.model.config)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"attention_rank": {"decoder": [4, 0]}}, r"cut\.attention_rank must be null, or one rank .*\(decoder: 2 "),
        ({"heads": 1, "attention_rank": {"decoder": [4, 0]}}, r"above 0 only where cut\.heads is a list with 0"),
        ({"heads": {"decoder": [0, 2]}, "attention_rank": {"decoder": [0, 4]}}, r"above 0 only where cut\.heads is"),
        ({"heads": {"decoder": [0, 2]}, "attention_rank": {"decoder": [4]}}, r"one rank for each block that stays"),
        ({"ffn": {"decoder": [0, 9]}, "ffn_rank": {"decoder": [-1, 0]}}, r"cut\.ffn_rank must be null, or one rank"),
        ({"ffn": {"decoder": [0, 9]}, "ffn_rank": {"decoder": [33, 0]}}, r"cut\.ffn_rank must have ranks from 1 to 32"),
        (
            {"ffn": {"decoder": [0, 9]}, "ffn_rank": {"decoder": [17, 0]}, "hidden": 16},
            r"cut\.ffn_rank must have ranks from 1 to 16, got 17: .* at most the 16 channels that stay",
        ),
        (
            {"decoder_layers": [1], "ffn": {"decoder": [0]}, "ffn_rank": {"decoder": [24]}},
            r"ranks from 1 to 23, got 24: .* must be fewer than the 1536 of the feed-forward layers",
        ),
    ],
)  # fmt: skip
def test_ranks_that_no_model_can_have(tiny: Tiny, kept: Any, message: str) -> None:
    config = tiny("causal_lm", intermediate_size=16 if "decoder_layers" in kept else 48).model.config
    with pytest.raises(ValueError, match=message) as caught:
        cut(**kept).validate(config)
    assert "\n" not in str(caught.value)


def test_maps_need_calibration_text_and_layers_that_can_go(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"cut\.calibration_batches must be >= 1 with cut\.ffn_rank"):
        cut(ffn={"decoder": [0, 48]}, ffn_rank={"decoder": [4, 0]}, calibration_batches=0)
    family = tiny("causal_lm")
    kept = cut(ffn={"decoder": [0, 48]}, ffn_rank={"decoder": [4, 0]})
    with pytest.raises(ValueError, match=r"cut\.ffn_rank must be null here: maps in the place of layers are fitted"):
        kept.apply(family, [])
    assert {axis: kept.divisors[axis] for axis in (FFN, "ffn_rank")} == {FFN: 48, "ffn_rank": 4}
