"""The objective in chunks of labels is the objective on whole logits: values and gradients, at every head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.loss.base import IGNORE
from slimexp.loss.cross_entropy import CrossEntropy
from slimexp.loss.hidden import HiddenStates
from slimexp.loss.kl import ForwardKl
from slimexp.model.base import Family, positions
from slimexp.schedule import Linear
from slimexp.technique import objective as module
from slimexp.technique.objective import Objective, counted

Make = Callable[..., Any]
GEMMA = {"model_type": "gemma2", "hidden_size": 32, "head_dim": 8, "final_logit_softcapping": 3.0}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("seq2seq", {}),
    ("causal_lm", {}),
    ("causal_lm", {"tie_word_embeddings": False}),
    ("causal_lm", GEMMA),
    ("causal_lm", {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
]
TEXTS = [("some text", "another", None), ("a", "two words", None), ("three", "", None)]
PROGRESS = 0.3


@pytest.fixture
def made(tiny: Make) -> Make:
    """Task and values -> a student and a maker of its objective, cross-entropy and divergence from a teacher."""

    def make(task: str, *, hidden: bool = False, at_once: int = 7 * 259, teacher: Any = None, **config: Any) -> Any:
        losses: dict[str, nn.Module] = {
            "ce": CrossEntropy(weight=0.7, label_smoothing=0.1),
            "kl": ForwardKl(weight=1.0, temperature=Linear(start=3.0, end=1.0)),
        }
        if hidden:
            losses["hidden"] = HiddenStates(weight=2.0)
        modules = nn.ModuleDict(losses)
        family, teacher = tiny(task, **config), teacher or tiny(task, **config)
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.mul_(1.5)

        def objective() -> Objective:
            return Objective(modules, family, teacher, logits_at_once=at_once, shared=lambda denominator: denominator)

        return family, objective

    return make


def values(family: Family, objective: Objective) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Objective, terms and gradients on a batch with padding."""
    family.model.zero_grad()
    batch = family.encode(TEXTS, multiple=4)
    total, terms = objective(batch, PROGRESS)
    total.backward()
    return total, terms, {name: p.grad.clone() for name, p in family.model.named_parameters() if p.grad is not None}


def compare(monkeypatch: pytest.MonkeyPatch, family: Family, make: Callable[[], Objective]) -> None:
    chunked = make()
    assert chunked.in_chunks
    with monkeypatch.context() as patch:
        patch.setattr(module, "head_of", lambda family: None)
        plain = make()
    assert not plain.in_chunks
    total, terms, gradients = values(family, chunked)
    expected, expected_terms, expected_gradients = values(family, plain)
    assert torch.allclose(total, expected, rtol=1e-5)
    assert terms.keys() == expected_terms.keys() and list(terms) == ["ce", "kl", *list(terms)[2:]]
    for name, term in terms.items():
        assert torch.allclose(term, expected_terms[name], rtol=1e-5, atol=1e-6) and not term.requires_grad
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(("task", "config"), KINDS, ids=["t5", "llama", "untied", "gemma2", "gpt2"])
def test_equals_the_objective_on_whole_logits(
    made: Make, monkeypatch: pytest.MonkeyPatch, task: str, config: dict[str, Any]
) -> None:
    compare(monkeypatch, *made(task, **config))


@pytest.mark.parametrize("at_once", [1, 259, 10**9])
def test_whatever_the_size_of_a_chunk(made: Make, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    compare(monkeypatch, *made("causal_lm", at_once=at_once))


def test_with_hidden_states_beside(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(monkeypatch, *made("seq2seq", hidden=True))


def test_where_the_vocabulary_of_the_teacher_is_wider(tiny: Make, made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny("causal_lm")
    teacher.model.resize_token_embeddings(320)
    compare(monkeypatch, *made("causal_lm", teacher=teacher))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@pytest.mark.parametrize("bias", [False, True])
def test_through_a_head_that_is_parametrized_or_has_a_bias(
    made: Make, monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    family, make = made("causal_lm", tie_word_embeddings=False)
    head = family.model.lm_head
    if bias:
        head.bias = nn.Parameter(torch.randn(head.out_features))
    parametrize.register_parametrization(head, "weight", Halved())
    compare(monkeypatch, family, make)


def test_a_frozen_head_has_no_gradient(made: Make) -> None:
    family, make = made("causal_lm", tie_word_embeddings=False)
    family.model.lm_head.weight.requires_grad_(False)
    assert "lm_head.weight" not in values(family, make())[2]


def test_without_labels_it_is_zero_and_so_are_gradients(made: Make) -> None:
    family, make = made("causal_lm")
    batch = family.encode(TEXTS)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE)
    total, terms = make()(batch, PROGRESS)
    total.backward()
    assert total == 0 and all(term == 0 for term in terms.values())
    assert all(p.grad is None or (p.grad == 0).all() for p in family.model.parameters())


def test_without_gradient_it_costs_none(made: Make) -> None:
    family, make = made("causal_lm")
    expected = make()(family.encode(TEXTS), PROGRESS)[0]
    with torch.no_grad():
        total, _ = make()(family.encode(TEXTS), PROGRESS)
    assert torch.equal(total, expected) and not total.requires_grad


def test_a_scaled_objective_has_scaled_gradients(made: Make) -> None:
    """As a loss scaler, or accumulated batches, ask for."""
    family, make = made("causal_lm")
    once = values(family, make())[2]
    family.model.zero_grad()
    (make()(family.encode(TEXTS, multiple=4), PROGRESS)[0] * 3).backward()
    for name, parameter in family.model.named_parameters():
        assert parameter.grad is not None and torch.allclose(parameter.grad, 3 * once[name], rtol=1e-4, atol=1e-6)


def test_autocast_multiplies_in_its_type(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    family, make = made("causal_lm")
    exact = values(family, make())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _, gradients = values(family, make())
    assert total.dtype == torch.float32 and total != exact[0]
    assert torch.allclose(total, exact[0], rtol=2e-2)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact[2][name]).norm() < 0.1 * exact[2][name].norm() + 1e-6


@pytest.mark.parametrize("hidden", [False, True])
def test_a_classifier_keeps_its_logits_whole(made: Make, hidden: bool) -> None:
    family, make = made("classification", hidden=hidden)
    objective = make()
    assert not objective.in_chunks
    total, _ = objective(family.encode([("a", None, 1), ("b c", None, 0)]), PROGRESS)
    total.backward()
    assert total.isfinite()


def test_no_tensor_of_all_logits_is_made(made: Make) -> None:
    """No intermediate result on whole batches is as wide as the vocabulary."""
    family, make = made("causal_lm", at_once=4 * 259)
    objective, batch = make(), family.encode([("x" * 40, None, None)] * 3)
    seen: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            outputs = result if isinstance(result, tuple | list) else [result]
            seen.extend(x.numel() // 259 for x in outputs if isinstance(x, Tensor) and x.shape[-1:] == (259,))
            return result

    with Sizes():
        objective(batch, PROGRESS)[0].backward()
    assert seen and max(seen) <= 32, "states transposed have as many rows as they are wide"


def test_what_is_counted_on_the_host_is_what_the_device_would_count(made: Make) -> None:
    family, make = made("seq2seq", hidden=True)
    batch = family.encode(TEXTS, multiple=4)
    known = counted(batch, read=["attention_mask", "labels"])
    new = {"positions_of_logits": "labels", "positions_of_labels": "labels",
           "positions_of_attention_mask": "attention_mask"}  # fmt: skip
    assert known.keys() - batch.keys() == new.keys()
    for name, of in new.items():
        assert torch.equal(known[name], positions(batch, of))
    expected, actual = make()(batch, PROGRESS), make()(known, PROGRESS)
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize("shares", [1, 2, 4, 1000])
def test_labels_that_do_not_count_fill_up_to_whole_shares_and_change_nothing(made: Make, shares: int) -> None:
    family, make = made("causal_lm")
    batch = family.encode(TEXTS, multiple=4)
    known = counted(batch, read=[], shares=shares)
    chosen, counting, share = (
        known["positions_of_logits"],
        positions(batch, "labels"),
        -(-batch["labels"].numel() // shares),
    )
    assert set(counting.tolist()) <= set(chosen.tolist()) and len(chosen.unique()) == len(chosen)
    assert len(chosen) - len(counting) < share and (len(chosen) % share == 0 or len(chosen) == batch["labels"].numel())
    assert torch.allclose(make()(known, PROGRESS)[0], make()(batch, PROGRESS)[0], rtol=1e-6)


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_a_mask_that_masks_nothing_is_left_out(made: Make, task: str) -> None:
    family, make = made(task, hidden=True)
    batch = family.encode([("text", "word", 1)] * 2)
    known = counted(batch, read=["attention_mask"])
    assert "attention_mask" not in known and "attention_mask" in batch
    assert torch.allclose(make()(known, PROGRESS)[0], make()(batch, PROGRESS)[0], rtol=1e-6)


def test_scheduled_quantities_follow_the_model_to_another_device(made: Make) -> None:
    """Also where training has not gone on in between."""
    objective = made("seq2seq")[1]()
    for device in ("meta", "cpu"):
        objective.schedule(PROGRESS, torch.device(device))
        held = [*objective._weights.values(), *objective._scheduled["kl"].values()]
        assert held and {tensor.device.type for tensor in held} == {device}
    assert objective._weights["kl"].item() == 1.0
