"""What an importance is shown is what the model reads, and nothing is left of the showing."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimexp.calibration.observe import calibrate, check_called
from slimexp.importance.base import Calibrated
from slimexp.importance.taylor import Taylor
from slimexp.importance.wanda import Wanda
from slimexp.quantizer.token import Token
from slimexp.weight.attachment import INPUT, attach

ROWS = [("one two", "one 2", 0), ("three", "3", 1), ("four and five", "four & 5", 1)]


@pytest.fixture(params=["seq2seq", "causal_lm", "classification"])
def family(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> Any:
    return tiny(request.param)


def cross_entropy(family: Any, batch: dict[str, Tensor]) -> Tensor:
    logits, _ = family.forward(batch)
    return F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())


def show(importance: Calibrated, family: Any) -> dict[str, Tensor]:
    batches = [family.encode([row]) for row in ROWS]
    objective = lambda batch: cross_entropy(family, batch)  # noqa: E731
    return calibrate(importance, family, family.compressible(), batches, objective=objective)


def in_double(family: Any) -> Any:
    twin = copy.copy(family)
    twin.model = copy.deepcopy(family.model).double()
    return twin


# --- against a float64 reference -----------------------------------------------------------------


def test_wanda_over_all_tokens_of_a_model(family: Any) -> None:
    shown = show(Wanda(rows=3), family)
    twin = in_double(family)
    for name, layer in twin.compressible().items():
        seen: list[np.ndarray] = []
        hook = layer.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].detach().numpy()))
        for row in ROWS:
            twin.forward(twin.encode([row]))
        hook.remove()
        tokens = np.concatenate([array.reshape(-1, array.shape[-1]) for array in seen])
        expected = np.abs(layer.weight.detach().numpy()) * np.linalg.norm(tokens, axis=0)
        score = Wanda(rows=3).score(family.compressible()[name].weight, shown[name])
        np.testing.assert_allclose(score.detach().numpy(), expected, rtol=1e-4, atol=1e-7)


def test_taylor_over_all_rows_of_a_model(family: Any) -> None:
    shown = show(Taylor(rows=3), family)
    twin = in_double(family)
    expected = {name: np.zeros(layer.weight.shape) for name, layer in twin.compressible().items()}
    for row in ROWS:
        twin.model.zero_grad()
        cross_entropy(twin, twin.encode([row])).backward()
        for name, layer in twin.compressible().items():
            expected[name] += (layer.weight.grad * layer.weight.detach()).numpy() ** 2
    for name, values in expected.items():
        np.testing.assert_allclose(shown[name].numpy(), values, rtol=1e-2, atol=1e-5 * values.max())


# --- what is shown -------------------------------------------------------------------------------


def test_a_quantizer_on_the_input_comes_first(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    layer = next(iter(family.compressible().values()))
    plain = show(Wanda(rows=3), family)
    attach(layer, INPUT, Token(bits=2, group_size=None))
    name = next(iter(family.compressible()))
    assert not torch.equal(show(Wanda(rows=3), family)[name], plain[name])


@pytest.mark.parametrize("importance", [Wanda(rows=3), Taylor(rows=3)])
def test_neither_dropout_nor_autocast_comes_between(importance: Calibrated, tiny: Callable[..., Any]) -> None:
    family = tiny("seq2seq", dropout_rate=0.5)
    plain = show(importance, family)
    family.model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = show(importance, family)
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@pytest.mark.parametrize("importance", [Wanda(rows=3), Taylor(rows=3)])
def test_a_compiled_model_is_seen_through_time_and_again(importance: Calibrated, tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    plain = show(importance, family)
    family.model.compile(backend="eager")
    for row in ROWS:
        with torch.no_grad():
            family.forward(family.encode([row]))  # compiled now, without hooks
    for _ in range(2):
        again = show(importance, family)
        assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_a_layer_that_no_row_reaches(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    layers = {**family.compressible(), "expert.7": nn.Linear(4, 4)}
    for importance in (Wanda(rows=1), Taylor(rows=1)):
        with pytest.raises(ValueError, match=r"layer 'expert\.7' had no part in the 1 rows .* raise importance\.rows"):
            calibrate(
                importance,
                family,
                layers,
                [family.encode(ROWS[:1])],
                objective=lambda batch: cross_entropy(family, batch),
            )


# --- what is left --------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", [Wanda(rows=3), Taylor(rows=3)])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left(importance: Calibrated, training: bool, tiny: Callable[..., Any]) -> None:
    family = tiny("seq2seq", dropout_rate=0.5)
    family.model.train(training)
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    cross_entropy(family, family.encode(ROWS)).backward()
    gradients = [parameter.grad.clone() for parameter in family.model.parameters()]
    state = torch.get_rng_state()
    shown = show(importance, family)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training is training for module in family.model.modules())
    assert not any(module._forward_pre_hooks for module in family.compressible().values())
    assert all(torch.equal(p.grad, old) for p, old in zip(family.model.parameters(), gradients, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.model.state_dict().items())
    assert not any(total.requires_grad for total in shown.values())


def test_hooks_are_gone_after_an_error(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    with pytest.raises(KeyError):
        calibrate(Wanda(rows=1), family, family.compressible(), [{}], objective=lambda _: torch.zeros(()))
    assert not any(module._forward_pre_hooks for module in family.compressible().values())


@pytest.mark.parametrize("task", ["causal_lm", "seq2seq", "classification"])
def test_layers_that_are_called_pass(task: str, tiny: Callable[..., Any]) -> None:
    family = tiny(task)
    family.model.to("meta")
    check_called(family, family.compressible())


@pytest.mark.parametrize("stage", ["quantize", "prune"])
def test_a_weight_that_the_model_multiplies_itself_is_refused_before_anything_runs(
    stage: str, tiny: Callable[..., Any], technique: Callable[..., Any]
) -> None:
    """Mamba's dt_proj is a Linear that is never called: its inputs show to nobody."""
    mamba = {"model_type": "mamba", "state_size": 4, "intermediate_size": 64, "time_step_rank": 4}
    family = tiny("causal_lm", **mamba)
    family.model.to("meta")
    chosen = ["importance@pipeline.prune.importance=wanda"] if stage == "prune" else []
    with pytest.raises(ValueError, match=r"dt_proj' is never called, .* leave it out by exclude=\['\*\.dt_proj'\]"):
        technique(stage, *chosen).inspect(family)
    technique(stage, *chosen, exclude="['*.dt_proj']").inspect(family)
    technique("prune").inspect(family)  # of weights alone
