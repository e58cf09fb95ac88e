"""What an engine may round, and what is no export."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimexp import artifact
from slimexp.format.base import Artifact, Plain
from slimexp.format.hf import Hf
from slimexp.format.onnx import Onnx
from slimexp.format.verification import Agreement, Differs, compare, tolerance, verify, verify_as_run
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.weight.attachment import INPUT, attach

Make = Callable[..., Any]


@pytest.fixture
def model(tiny: Make, tmp_path: Path) -> Artifact:
    artifact.save(tiny("causal_lm", tie_word_embeddings=False), tmp_path / "artifact", dtype=torch.float32, stages=[])
    return Artifact(tmp_path / "artifact")


class Changed(Plain):
    """PyTorch, with logits changed by a function."""

    def __init__(self, model: Any, change: Callable[[Any], Any]) -> None:
        super().__init__(model)
        self.change = change

    def logits(self, *row: Any) -> Any:
        return self.change(super().logits(*row))


def agreement(**values: float) -> Agreement:
    return Agreement(**{"gap": 0.0, "rms": 0.0, "spread": 1.0, "tokens": 20, "same_tokens": 20, "lead": 0.0} | values)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("values", "agrees"),
    [
        ({"gap": 0.0009}, True),
        ({"gap": 0.0011}, False),
        ({"gap": 0.0011, "spread": 4.0}, True),
        ({"gap": math.nan}, False),
        ({"same_tokens": 3, "lead": 0.0019}, True),  # a tie
        ({"same_tokens": 3, "lead": 0.0021}, False),
        ({"same_tokens": 3, "lead": math.nan}, False),
        ({"spread": 0.0}, True),
        ({"gap": 1e-9, "spread": 0.0}, False),
    ],
)
def test_within(values: dict[str, float], agrees: bool) -> None:
    assert agreement(**values).within(1e-3) is agrees


def test_the_difference_is_a_share_of_the_spread(model: Artifact) -> None:
    network = model.family.model
    plain = compare(model, Changed(network, lambda logits: logits + np.float32(0.01)))
    with torch.no_grad():
        model.family.model.lm_head.weight.mul_(10)
    large = compare(model, Changed(network, lambda logits: logits + np.float32(0.1)))
    assert large.gap == pytest.approx(10 * plain.gap, rel=1e-3)
    assert large.relative == pytest.approx(plain.relative, rel=1e-3)
    assert plain.rms == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("layer", ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"])
def test_one_percent_of_one_layer_is_caught(layer: str, model: Artifact, tiny: Make) -> None:
    other = tiny("causal_lm", tie_word_embeddings=False).model
    with torch.no_grad():
        other.get_submodule(f"model.layers.0.{layer}").weight.mul_(1.01)
    with pytest.raises(Differs, match="computes something else than PyTorch: logits differ"):
        verify(model, Hf(), Plain(other))


def test_tokens_are_those_of_pytorch_but_for_ties(model: Artifact) -> None:
    def swapped(logits: Any) -> Any:
        """The second likeliest token as the likeliest, by as little as that takes."""
        best, second = logits[-1].argsort()[[-1, -2]]
        logits[-1, second] = np.nextafter(logits[-1, best], np.float32(np.inf))
        return logits

    found = compare(model, Changed(model.family.model, swapped))
    assert found.same_tokens == 0 and found.lead > 0
    assert found.within(2 * found.relative) and not found.within(found.relative / 3)


def test_what_is_run_may_round_more_but_is_the_same_model(model: Artifact) -> None:
    chance = np.random.default_rng(0)
    network, kind = model.family.model, Hf()

    def noisy(share: float) -> Changed:
        spread = compare(model, Plain(network)).spread
        return Changed(network, lambda x: x + chance.normal(0, share * spread, x.shape).astype(np.float32))

    assert verify_as_run(model, kind, noisy(0.2)).relative_rms == pytest.approx(0.2, rel=0.2)
    with pytest.raises(Differs, match="the engine as it is run"):
        verify_as_run(model, kind, noisy(1.0))


def test_where_activations_are_rounded_the_measure_is_what_that_does(tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm", tie_word_embeddings=False)
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=8, group_size=None))
        attach(layer, INPUT, Token(bits=8, group_size=None))
    artifact.save(family, tmp_path / "rounded", dtype=torch.float32, stages=[])
    rounded = Artifact(tmp_path / "rounded")
    moved = compare(rounded, Plain(rounded.unrounded)).relative
    assert tolerance(rounded, Hf()) == Hf.tolerance < moved
    assert tolerance(rounded, Onnx(cache=True)) == pytest.approx(4 * moved)
    with pytest.raises(Differs, match="something else than PyTorch"):
        verify(rounded, Hf(), Plain(rounded.unrounded))
    found = verify(rounded, Onnx(cache=True), Plain(rounded.unrounded))
    assert found.allowed == pytest.approx(4 * moved) and "where inputs are rounded" in str(found)
    other = Artifact(tmp_path / "rounded").unrounded
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(Differs, match="something else than PyTorch"):
        verify(rounded, Onnx(cache=True), Plain(other))


def test_where_nothing_is_rounded_it_is_the_tolerance(model: Artifact) -> None:
    assert model.unrounded is model.family.model
    assert tolerance(model, Onnx(cache=True)) == Onnx.tolerance
    assert verify(model, Onnx(cache=True), Plain(model.family.model)).allowed is None


def test_text_that_is_split_otherwise(model: Artifact) -> None:
    class Splits(Plain):
        def __init__(self, change: Callable[[list[int]], list[int]]) -> None:
            super().__init__(model.family.model)
            self.change = change

        def token_ids(self, texts: Any) -> Any:
            return [self.change(ids) for ids in model.family.token_ids(texts)]

    verify(model, Hf(), Splits(lambda ids: ids))
    for change in (lambda ids: ids[:-1], lambda ids: ids[::-1]):
        with pytest.raises(Differs, match="the engine splits 'The quick"):
            verify(model, Hf(), Splits(change))


def test_logits_of_another_shape(model: Artifact) -> None:
    with pytest.raises(Differs, match=r"logits of shape \(\d+, 10\), PyTorch"):
        compare(model, Changed(model.family.model, lambda logits: logits[:, :10]))
