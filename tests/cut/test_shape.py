from collections.abc import Callable
from typing import Any

import pytest

from slimexp.cut.shape import ParameterCounter, axes_of, divides, lattice, possible, readers, whole, writers

Tiny = Callable[..., Any]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("seq2seq", {"encoder": 2, "decoder": 2, "heads": 4, "ffn": 48, "hidden": 32}),
        ("causal_lm", {"decoder": 2, "heads": 2, "ffn": 48, "hidden": 32}),
        ("classification", {"encoder": 2, "ffn": 48}),
    ],
)
def test_the_shape_of_a_model(tiny: Tiny, task: str, expected: dict[str, int]) -> None:
    assert whole(tiny(task).model.config) == expected


def test_the_lattice_goes_in_multiples_down_from_the_whole(tiny: Tiny) -> None:
    config = tiny("causal_lm", intermediate_size=44).model.config
    options = lattice(config, axes_of(config), multiple=16)
    assert options == {"decoder": [2, 1], "heads": [2, 1], "ffn": [44, 32, 16], "hidden": [32, 16]}
    assert lattice(config, ["ffn"], multiple=32) == {"decoder": [2], "heads": [2], "ffn": [44, 32], "hidden": [32]}
    assert lattice(config, ["heads"], multiple=32)["heads"] == [2]  # one group is 2 heads of 8 channels


def test_what_must_be_a_multiple_and_is_none_of_its_own_has_one_to_go_to(tiny: Tiny) -> None:
    config = tiny("causal_lm", intermediate_size=44).model.config
    options = lattice(config, ["ffn"], multiple=16, strict=True)
    assert options == {"decoder": [2], "heads": [2], "ffn": [44, 32, 16], "hidden": [32]}
    assert not divides(config, {"ffn": 44, "hidden": 32}, ["ffn"], 16)
    assert divides(config, {"ffn": 32, "hidden": 30}, ["ffn"], 16), "of what may be cut"
    with pytest.raises(ValueError, match="'ffn' has no multiple of 48 up to its own 44: lower the multiple"):
        lattice(config, ["ffn"], multiple=48, strict=True)


def test_an_axis_that_cannot_go(tiny: Tiny) -> None:
    with pytest.raises(
        ValueError, match="axes of a model of type bert that can be cut are layers, ffn; got 'hidden': its norms"
    ):
        lattice(tiny("classification").model.config, ["ffn", "hidden"], multiple=1)


def test_readers_and_writers(tiny: Tiny) -> None:
    model = tiny("seq2seq").model
    assert {name.split(".")[-1] for name in readers(model, "ffn")} == {"wo"}
    assert {name.split(".")[-1] for name in readers(model, "heads")} == {"o"}
    assert {name.split(".")[-1] for name in readers(model, "hidden")} == {"q", "k", "v", "wi"}
    names = {module: name for name, module in model.named_modules()}
    assert {names[module].split(".")[-1] for module in writers(model, "hidden")} == {
        "shared",
        "embed_tokens",
        "o",
        "wo",
    }


def test_what_transformers_cannot_run_is_no_shape(tiny: Tiny) -> None:
    config = tiny("seq2seq").model.config
    assert possible(config, whole(config) | {"decoder": 1})
    assert not possible(config, whole(config) | {"encoder": 1})


def test_parameters_are_counted_without_a_model_of_that_shape(tiny: Tiny) -> None:
    model = tiny("causal_lm").model
    counter, dense = ParameterCounter(model), whole(model.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert counter.count({"decoder": [0, 1]}, dense) == total
    neuron = 3 * 32  # one row or column of gate, up and down projection in each of two blocks
    assert counter.count({"decoder": [0, 1]}, dense | {"ffn": 47}) == total - 2 * neuron
    block = sum(parameter.numel() for parameter in model.model.layers[1].parameters())
    assert counter.count({"decoder": [0]}, dense) == total - block
    assert counter.touched({"decoder": [0]}, dense) == block / total
    assert counter.touched({"decoder": [0, 1]}, dense | {"ffn": 47}) == 2 * 48 * neuron / total
