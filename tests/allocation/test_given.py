"""Widths that a configuration gives: nothing is scanned, and every layer is named."""

from typing import Any

import pytest

from slimexp.allocation.given import Given

ALLOCATION = "+allocation@pipeline.quantize.allocation=given"
NAMES = ["blocks.0.up", "blocks.0.down", "blocks.1.up"]


@pytest.mark.fast
def test_the_first_pattern_that_matches_counts() -> None:
    given = Given(bits={"*.down": 8, "blocks.0.*": 2, "*": 4})
    assert given.choose({name: [] for name in NAMES}, {}, 0) == {"blocks.0.up": 2, "blocks.0.down": 8, "blocks.1.up": 4}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"blocks.0.*": 4}, r"no pattern for layer 'blocks\.1\.up'"),
        ({"*": 4, "head": 8}, r"no layer matches 'head': remove it; layers are blocks\.\*\.up, blocks\.\*\.down"),
        ({"*": 4, "*.up": 8}, r"no layer is left for '\*\.up' by those before it: put it first"),
    ],
)
def test_a_layer_without_pattern_and_a_pattern_without_layer_are_refused(bits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Given(bits=bits).choose({name: [] for name in NAMES}, {}, 0)


@pytest.mark.fast
@pytest.mark.parametrize("bits", [{}, {"*": 1}, {"*": 16}])
def test_widths_out_of_range_are_refused(bits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"allocation\.bits must"):
        Given(bits=bits)


def test_layers_are_rounded_to_their_widths_without_a_scan(technique: Any, tiny: Any, corpus: Any) -> None:
    bits = "{model.layers.0.*:8,*:4}"
    stage = technique(
        "quantize",
        "+pipeline.quantize.allocation={_target_:slimexp.allocation.given.Given,bits:" + bits + "}",
        activation_bits=None,
        group_size=16,
    )
    family = tiny("causal_lm")
    stage.prepare(family, corpus("causal_lm"), None)
    figures = stage.finish()
    widths = {int(name.split(".")[2]): quantizer.bits for name, quantizer in stage.on_weights.items()}
    assert widths == {0: 8, 1: 4}
    assert figures["bits"] == 6
    assert not [name for name in figures if "nats" in name]
