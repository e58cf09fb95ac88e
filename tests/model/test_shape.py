from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.model.shape import AXES, Census, lattice, readers, whole, writers
from slimexp.model.surgery import remove

Tiny = Callable[..., Any]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("seq2seq", {"encoder": 2, "decoder": 2, "ffn": 48, "hidden": 32}),
        ("causal_lm", {"decoder": 2, "heads": 2, "ffn": 48, "hidden": 32}),
        ("classification", {"encoder": 2, "ffn": 48}),
    ],
)
def test_the_shape_of_a_model(tiny: Tiny, task: str, expected: dict[str, int]) -> None:
    shape = whole(tiny(task).model.config)
    assert {word: shape[word] for word in expected} == expected


@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("seq2seq", {}),
        ("seq2seq", {"tie_word_embeddings": False}),
        ("causal_lm", {}),
        ("causal_lm", {"tie_word_embeddings": False, "model_type": "qwen2"}),
        ("classification", {}),
    ],
)
def test_parameters_are_counted_as_the_removed_model_has_them(tiny: Tiny, task: str, values: dict[str, Any]) -> None:
    family = tiny(task, **values)
    config = family.model.config
    census, dense = Census(family.model), whole(config)
    blocks = {stack: list(range(len(own))) for stack, own in family.blocks().items()}
    assert census.count(blocks, dense) == size(family)
    shape = {**dense, "ffn": 24} | ({"hidden": 16} if "hidden" in dense else {})
    layers = {stack: [0] for stack in blocks}
    kept: dict[str, Any] = {"hidden": {"": torch.arange(16)}} if "hidden" in dense else {}
    kept["ffn"] = {block: torch.arange(24) for block in blocks_of(family)}
    assert census.count(layers, shape) == size(remove(family, layers, kept))
    assert 0 < census.touched(layers, shape) <= 1
    assert census.touched(blocks, dense) == 0


def test_the_lattice_goes_in_multiples_down_from_the_whole(tiny: Tiny) -> None:
    config = tiny("causal_lm", intermediate_size=44).model.config
    options = lattice(config, AXES, multiple=16)
    assert options == {"decoder": [2, 1], "heads": [2, 1], "ffn": [44, 32, 16], "hidden": [32, 16]}
    assert lattice(config, ["ffn"], multiple=32) == {"decoder": [2], "heads": [2], "ffn": [44, 32], "hidden": [32]}
    assert lattice(config, ["heads"], multiple=32)["heads"] == [2]  # one group is 2 heads of 8 channels


def test_an_axis_that_cannot_go(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"axes of a model of type bert that can be cut are layers, ffn; got 'hidden'"):
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


def size(family: Any) -> int:
    return sum(parameter.numel() for parameter in family.model.parameters())


def blocks_of(family: Any) -> list[str]:
    names = {module: name for name, module in family.model.named_modules()}
    return [names[block] for stack in family.blocks().values() for block in stack]
