"""Types without a declaration: what names suggest is put to the proof, and only what holds is cut."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from slimexp.architecture.base import FFN, HEADS, HIDDEN, LAYERS, VOCABULARY, Architecture
from slimexp.architecture.decoder import GEMMA, LLAMA
from slimexp.architecture.model_type import RECOGNIZED, architecture_of, size, variant
from slimexp.cut.proof import prove, randomize
from slimexp.cut.recognition import recognize
from slimexp.cut.shape import axes_of

Tiny = Callable[..., Any]
SMALL = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 4, "intermediate_size": 96}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    RECOGNIZED.clear()
    yield
    RECOGNIZED.clear()


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("smollm3", [LAYERS, HEADS, FFN, HIDDEN]),  # Llama's names
        ("cohere", [LAYERS, HEADS, FFN]),  # Llama's names and layer norms
        ("exaone4", [LAYERS, HEADS, FFN, HIDDEN]),  # norms after attention and feed-forward
        ("ernie", [LAYERS, FFN]),  # BERT's names
        ("persimmon", [LAYERS]),  # names like no other's
    ],
)
def test_what_can_go_from_a_type_that_is_not_declared(
    kind: str, axes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.for_model(kind, **SMALL, pad_token_id=0)
    state = torch.random.get_rng_state()
    recognize(config)
    assert axes_of(config) == axes
    assert f"of a small one, {', '.join(axes)} could go" in capsys.readouterr().out
    assert torch.equal(torch.random.get_rng_state(), state), "a run draws other numbers"
    recognize(config)
    assert capsys.readouterr().out == "", "proved twice"


def test_an_axis_that_was_not_proved_says_so() -> None:
    config = AutoConfig.for_model("cohere", **SMALL)
    recognize(config)
    with pytest.raises(ValueError, match="hidden of a model of type cohere cannot be cut alone: a small model"):
        size(config, HIDDEN)
    with pytest.raises(ValueError, match=r"recognized by its names alone: cut layers, heads or ffn instead"):
        size(config, VOCABULARY)


def test_channels_are_scaled_where_the_model_stays_what_it_is() -> None:
    config = AutoConfig.for_model("cohere", **SMALL)  # attention and feed-forward read one norm
    recognize(config)
    rules = architecture_of(config).rules(config)
    assert [rule.before for rule in rules] == ["self_attn.v_proj", "mlp.up_proj"]


def test_a_flag_asks_for_a_proof_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Norms of the queries differ from head to head, and a limit on values keeps them from being scaled."""
    plain, normed = (AutoConfig.for_model("cohere", **SMALL, use_qk_norm=flag) for flag in (False, True))
    recognize(plain)
    recognize(normed)
    assert axes_of(plain) == [LAYERS, HEADS, FFN] and axes_of(normed) == [LAYERS, FFN]
    free, limited = (AutoConfig.for_model("olmo", **SMALL, clip_qkv=limit) for limit in (None, 0.1))
    recognize(free)
    recognize(limited)
    rules = [{rule.before for rule in architecture_of(config).rules(config)} for config in (free, limited)]
    assert rules[0] - rules[1] == {"self_attn.v_proj"} and not rules[1] - rules[0]


def test_sizes_ask_for_no_proof() -> None:
    """What is left of a model after a cut is of the variant that it was of."""
    dense = AutoConfig.for_model("smollm3", **SMALL, num_key_value_heads=4)
    less = {**SMALL, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 8}
    small = AutoConfig.for_model("smollm3", **less, num_key_value_heads=2, rms_norm_eps=2e-6, vocab_size=99)
    assert variant(dense) == variant(small)
    small.attention_bias = True
    assert variant(dense) != variant(small)


def test_a_type_of_which_nothing_can_go() -> None:
    config = AutoConfig.for_model("mamba", num_hidden_layers=2, hidden_size=32)
    recognize(config)
    with pytest.raises(ValueError, match="a model of type mamba cannot be cut"):
        architecture_of(config)


@pytest.mark.parametrize(
    ("kind", "wrong"), [("gemma2", LLAMA), ("llama", GEMMA)], ids=["gemma as llama", "llama as gemma"]
)
def test_the_proof_tells_a_wrong_declaration(
    tiny: Tiny, kind: str, wrong: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same names, and other norms and embeddings."""
    monkeypatch.setattr("slimexp.architecture.model_type.ARCHITECTURES", {kind: wrong})
    family = randomize(tiny("causal_lm", model_type=kind, head_dim=8, num_hidden_layers=3))
    prove(family, FFN)
    with pytest.raises(ValueError, match=rf"a model of type {kind} without some hidden is .* off"):
        prove(family, HIDDEN)
