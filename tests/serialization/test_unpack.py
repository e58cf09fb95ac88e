"""What kernels read of an artifact is what was trained, bit for bit."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.static import Static
from slimexp.quantizer.token import Token
from slimexp.serialization.unpack import unpacked
from slimexp.weight.attachment import INPUT, attach

Make = Callable[..., Any]


def saved(family: Any, folder: Path, on_weight: Make, on_input: Make | None = None) -> Any:
    """``family`` with a quantizer of each kind on every layer, saved."""
    for layer in family.compressible().values():
        attach(layer, "weight", on_weight())
        if on_input is not None:
            attach(layer, INPUT, on_input())
    artifact.save(family, folder, dtype=torch.float32, stages=[])
    return family


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (8, "tensor"), (5, 16), (4, 8), (3, None), (2, 8)])
def test_the_weights_that_were_trained(
    bits: int, group_size: int | str | None, symmetric: bool, tiny: Make, tmp_path: Path
) -> None:
    make = partial(MinMax, bits=bits, group_size=group_size, symmetric=symmetric)
    family = saved(tiny("causal_lm", attention_bias=True), tmp_path / "a", make)
    found = unpacked(tmp_path / "a")
    assert found.keys() == family.compressible().keys()
    for name, layer in family.compressible().items():
        one = found[name]
        assert one.numbers.dtype == torch.int8 and one.bits == bits and one.activation is None
        assert torch.equal(one.weight(), layer.weight)
        assert (one.zero is None) == symmetric
        assert one.bias is None if layer.bias is None else torch.equal(one.bias, layer.bias)
    assert found["model.layers.0.self_attn.q_proj"].bias is not None


def test_how_inputs_are_rounded(tiny: Make, tmp_path: Path) -> None:
    make = partial(MinMax, bits=8, group_size=None)
    saved(tiny("seq2seq"), tmp_path / "token", make, partial(Token, bits=8, group_size=None))
    assert {one.activation for one in unpacked(tmp_path / "token").values()} == {"token"}
    static = Static(bits=8, range=MinMax)
    static.start(torch.tensor([-1.0, 2.0]))
    saved(tiny("causal_lm"), tmp_path / "static", make, partial(deepcopy, static))
    assert static.scale is not None
    assert {one.activation for one in unpacked(tmp_path / "static").values()} == {static.scale.item()}


def test_a_model_of_floats_has_none(tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny("causal_lm"), tmp_path / "a", dtype=torch.float32, stages=[])
    assert unpacked(tmp_path / "a") == {}
