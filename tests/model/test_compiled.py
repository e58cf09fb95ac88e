"""Blocks are compiled once for all of a kind, and only for as long as it is asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.model.cache import round_cache
from slimexp.model.compiled import _numerics, blocks_compiled, kinds, refusal
from slimexp.model.layer import latent
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.weight.attachment import INPUT, attach
from slimexp.weight.shared_class import computed_once

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _reset() -> None:
    torch._dynamo.reset()


def test_blocks_of_student_and_teacher_share_what_is_compiled(tiny: Make, graphs: list[Any]) -> None:
    family, teacher = tiny("causal_lm", num_hidden_layers=4), tiny("causal_lm", num_hidden_layers=6)
    batch = family.encode([("some text", None, None)])
    expected = family.forward(batch)[0], teacher.forward(batch)[0]
    with blocks_compiled(family, teacher), torch.no_grad():
        actual = family.forward(batch)[0], teacher.forward(batch)[0]
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert len(graphs) == 1, "ten blocks, one graph"


def test_a_model_is_as_before_afterwards(tiny: Make, graphs: list[Any]) -> None:
    family = tiny("seq2seq")
    blocks = [block for stack in family.blocks().values() for block in stack]
    with pytest.raises(KeyError), blocks_compiled(family):
        assert all("forward" in vars(block) for block in blocks)
        raise KeyError
    assert not any("forward" in vars(block) for block in blocks)


def test_hidden_states_are_seen_from_outside(tiny: Make, graphs: list[Any]) -> None:
    family = tiny("causal_lm")
    batch = family.encode([("some text", None, None)])
    _, expected = family.forward(batch, hidden=True)
    with blocks_compiled(family), torch.no_grad():
        _, actual = family.forward(batch, hidden=True)
    for stack, hidden in expected.items():
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(actual[stack], hidden, strict=True))


def quantized(family: Any, bits: Callable[[int], int] = lambda number: 4) -> list[MinMax]:
    """Quantizers on all layers of a model; number of a layer -> its bits."""
    layers = list(family.compressible().values())
    quantizers = [MinMax(bits=bits(number), group_size=16) for number in range(len(layers))]
    for layer, quantizer in zip(layers, quantizers, strict=True):
        attach(layer, "weight", quantizer)
    return quantizers


def test_weights_that_are_computed_once_are_those_of_each_layer(tiny: Make) -> None:
    """Torch's cache goes by the layer that a class was made for, and layers of compiled blocks share a class."""
    family = tiny("causal_lm")
    quantized(family)
    batch = family.encode([("some text", None, None)])
    with torch.no_grad():
        expected = family.forward(batch)[0]
        with blocks_compiled(family), torch.compiler.set_stance("force_eager"):
            for _ in range(2):
                with computed_once():
                    assert torch.equal(family.forward(batch)[0], expected)
                    assert torch.equal(family.forward(batch)[0], expected)
        with computed_once():
            assert torch.equal(family.forward(batch)[0], expected) and parametrize._cache


def test_blocks_with_quantizers_share_what_is_compiled(tiny: Make, graphs: list[Any]) -> None:
    """Each parametrized layer is of a class of its own, which it has back afterwards."""
    family = tiny("causal_lm", num_hidden_layers=4)
    quantized(family)
    classes = [type(module) for module in family.model.modules()]
    batch = family.encode([("some text", None, None)])
    expected = family.forward(batch)[0]
    with blocks_compiled(family):
        actual = family.forward(batch)[0]
    assert torch.allclose(actual, expected, atol=1e-6)
    assert len(graphs) == 1
    assert [type(module) for module in family.model.modules()] == classes
    parametrize.remove_parametrizations(next(iter(family.compressible().values())), "weight")


def test_what_changes_takes_effect(tiny: Make, graphs: list[Any]) -> None:
    """Switches, grids and widths: each in a graph of its own; what changes in place in the same one."""
    family = tiny("causal_lm")
    quantizers = quantized(family, bits=lambda number: 2 + number % 3)
    batch = family.encode([("some text", None, None)])
    seen = []

    def turn(active: bool) -> None:
        for quantizer in quantizers:
            quantizer.active = active

    def freeze() -> None:
        for quantizer, layer in zip(quantizers, family.compressible().values(), strict=True):
            quantizer.freeze(latent(layer).detach())

    def double() -> None:
        for layer in family.compressible().values():
            latent(layer).data.mul_(2)

    with blocks_compiled(family), torch.no_grad():
        for change in (partial(turn, False), partial(turn, True), freeze, double):
            change()
            actual = family.forward(batch)[0]
            with torch.compiler.set_stance("force_eager"):
                expected = family.forward(batch)[0]
            assert torch.allclose(actual, expected, atol=1e-6)
            seen.append((actual, len(graphs)))
    (off, _), (on, _), (frozen, before), (doubled, after) = seen
    assert not torch.allclose(off, on, atol=1e-6)
    assert torch.allclose(on, frozen, atol=1e-6) and not torch.allclose(frozen, doubled, atol=1e-6)
    assert before == after, "weights are no constants"


def test_kinds_of_blocks_differ_in_more_than_their_numbers(tiny: Make) -> None:
    family = tiny("causal_lm", num_hidden_layers=4)
    assert kinds(family) == 1
    quantized(family, bits=lambda number: 4 if number < 7 else 2)
    assert kinds(family) == 2, "the first block has seven layers of 4 bits"


def test_what_cannot_be_compiled_is_not_and_a_line_says_so(
    tiny: Make, graphs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    family = tiny("causal_lm")
    round_cache(family.model, 8)
    assert refusal(family) is not None
    with blocks_compiled(family), torch.no_grad():
        family.forward(family.encode([("some text", None, None)]))
    assert not graphs and capsys.readouterr().out.startswith("  not compiled, so slower: a model that rounds keys")


def test_what_the_compiler_fails_on_runs_without_it(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compile = torch.compile

    def fail(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=fail, **options))
    family = tiny("causal_lm")
    batch = family.encode([("some text", None, None)])
    with torch.no_grad():
        expected = family.forward(batch)[0]
        with blocks_compiled(family):
            actual = family.forward(batch)[0]
    assert torch.equal(actual, expected)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("  not compiled, so slower: ") and "no kernel" in line


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compiled_on_a_gpu_weights_lie_on_the_same_grid(tiny: Make, bits: int, symmetric: bool) -> None:
    family = tiny("causal_lm")
    quantized(family)
    torch.manual_seed(0)
    weight = torch.randn(576, 1536, device="cuda")
    quantizer = MinMax(bits=bits, group_size=64, symmetric=symmetric).cuda()
    with torch._inductor.config.patch(_numerics([family])):
        assert torch.equal(torch.compile(quantizer.forward)(weight), quantizer(weight))


def test_numbers_are_rounded_as_they_are_without_a_compiler(tiny: Make) -> None:
    family = tiny("causal_lm")
    assert not _numerics([family])
    layer = next(iter(family.compressible().values()))
    attach(layer, "weight", MinMax(bits=4, group_size=16))
    assert "emulate_precision_casts" not in _numerics([family])
    attach(layer, "input", Token(bits=8, group_size=None))
    assert _numerics([family])["emulate_precision_casts"]


def _gradients(device: str, backend: str | None) -> list[Tensor]:
    """Gradients of the quantized weights of two layers, the second behind rounded activations."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).to(device)
    for layer in layers:
        attach(layer, "weight", MinMax(bits=4, group_size=16, symmetric=True))
    attach(layers[1], INPUT, Token(bits=8, group_size=None, symmetric=True))
    inputs = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).to(device)
    module = layers if backend is None else torch.compile(layers, backend=backend)
    module(inputs).square().sum().backward()
    return [parameter.grad for parameter in layers.parameters()]  # type: ignore[misc]


def test_compiled_gradients_pass_through_rounding() -> None:
    """Those of torch 2.11 did not: a function that calls a module was compiled to a gradient of zeros."""
    for gradient, expected in zip(_gradients("cpu", "aot_eager"), _gradients("cpu", None), strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.gpu
def test_compiled_gradients_pass_through_rounding_on_a_gpu() -> None:
    """Sums of another order put an activation on the next of 256 values now and then."""
    for gradient, expected in zip(_gradients("cuda", "inductor"), _gradients("cuda", None), strict=True):
        assert (gradient - expected).norm() < 0.02 * expected.norm()
