"""The head of a model apart from its body: the same logits, or it is not told apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from slimexp.model.head import Head, head_of, states

Make = Callable[..., Any]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, 
         "max_position_embeddings": 64}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("seq2seq", {}),
    ("seq2seq", {"tie_word_embeddings": False}),
    ("causal_lm", {}),
    ("causal_lm", {"tie_word_embeddings": False}),
    ("causal_lm", {"model_type": "gemma2", "head_dim": 8, **GROUPED, "final_logit_softcapping": 5.0}),
    ("causal_lm", {"model_type": "cohere", **GROUPED, "logit_scale": 0.25}),
    ("causal_lm", {"model_type": "granite", **GROUPED, "logits_scaling": 8.0}),
    ("causal_lm", {"model_type": "phi", **SMALL, "partial_rotary_factor": 0.5}),  # its head has a bias
    ("causal_lm", {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    ("causal_lm", {"model_type": "opt", **SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    ("seq2seq", {"model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48,
                 "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}),
]  # fmt: skip
TEXTS = [("some text", "another", None), ("a", "two words", None)]


def logits(head: Head, inputs: Tensor) -> Tensor:
    return head.logits(F.linear(inputs, head.module.weight, head.module.bias))


@pytest.mark.parametrize(("task", "config"), ARCHITECTURES, ids=[str(c.get("model_type", t)) for t, c in ARCHITECTURES])
def test_states_and_head_make_the_models_logits(tiny: Make, task: str, config: dict[str, Any]) -> None:
    family = tiny(task, **config)
    with torch.no_grad():  # random logits are small, and a limit shows on large ones
        for parameter in family.model.parameters():
            parameter.mul_(3.0)
        if isinstance(getattr(family.model, "final_logits_bias", None), Tensor):
            family.model.final_logits_bias.normal_()
    head = head_of(family)
    assert head is not None
    batch = family.encode(TEXTS)
    expected, _ = family.forward(batch)
    inputs, _ = states(family, batch, head)
    assert inputs.shape[:2] == batch["labels"].shape
    assert torch.allclose(logits(head, inputs), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(family.forward(batch)[0], expected)  # the model has its head again


def test_hidden_states_come_with_them(tiny: Make) -> None:
    family = tiny("seq2seq")
    head, batch = head_of(family), family.encode(TEXTS)
    assert head is not None
    _, expected = family.forward(batch, hidden=True)
    _, hidden = states(family, batch, head, hidden=True)
    assert hidden.keys() == expected.keys()
    for stack in hidden:
        assert all(torch.equal(one, other) for one, other in zip(hidden[stack], expected[stack], strict=True))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_a_parametrized_head_is_told_apart(tiny: Make) -> None:
    family = tiny("causal_lm", tie_word_embeddings=False)
    parametrize.register_parametrization(family.model.lm_head, "weight", Halved())
    head, batch = head_of(family), family.encode(TEXTS)
    assert head is not None
    assert torch.allclose(logits(head, states(family, batch, head)[0]), family.forward(batch)[0], atol=1e-5)


def hooked(family: Any) -> None:
    family.model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)


def subclassed(family: Any) -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 3

    family.model.lm_head.__class__ = Own


def afterwards(family: Any) -> None:
    forward = family.model.forward

    def squared(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        output.logits = output.logits**2
        return output

    family.model.forward = squared


@pytest.mark.parametrize("change", [hooked, subclassed, afterwards])
def test_what_does_more_is_left_to_the_model(tiny: Make, change: Callable[[Any], None]) -> None:
    family = tiny("causal_lm")
    assert head_of(family) is not None
    change(family)
    assert head_of(family) is None


def test_a_classifier_has_none(tiny: Make) -> None:
    assert head_of(tiny("classification")) is None
