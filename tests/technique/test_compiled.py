"""A stage whose blocks are compiled, with what sits on their layers, ends with the weights of one that is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.technique.training import Execution

Make = Callable[..., Any]
STEPS = 4


def by(importance: str) -> str:
    return f"importance@pipeline.prune.importance={importance}"


def rounded(quantizer: str) -> str:
    return f"quantizer@pipeline.quantize.quantizer={quantizer}"


PRUNE = {"steps": STEPS, "sparsity": 0.5, "every": 1, "ramp": 0.75, "pad_to": 64}
QUANTIZE = {"steps": STEPS, "bits": 4, "group_size": 16, "activation_bits": None, "pad_to": 64}
NM = "pattern@pipeline.prune.pattern=n_m"
PACT = "quantizer@pipeline.quantize.activation_quantizer=pact"
CASES: dict[str, tuple[str, list[str], dict[str, Any], int]] = {  # technique, overrides, values, graphs of blocks
    "magnitude, n:m": ("prune", [by("magnitude"), NM], PRUNE, 1),
    "movement": ("prune", [by("movement")], PRUNE, 1),
    "Wanda": ("prune", [by("wanda")], PRUNE | {"importance.rows": 2}, 1),
    "L0": ("prune", [by("l0")], PRUNE, 1),
    "min-max, on at half, frozen later": ("quantize", [], QUANTIZE | {"start": 0.5, "freeze": 0.75}, 3),
    "affine, tokens": ("quantize", [], QUANTIZE | {"symmetric": False, "activation_bits": 8}, 1),
    "LSQ, frozen at half": ("quantize", [rounded("lsq")], QUANTIZE | {"freeze": 0.5}, 0),
    "PACT": ("quantize", [PACT], QUANTIZE | {"activation_bits": 8, "calibration_rows": 2}, 0),
}


SHOWN = ("Wanda", "min-max, on at half, frozen later", "LSQ, frozen at half")  # the others are slow


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in SHOWN else pytest.mark.slow) for case in CASES]
)
def test_training_ends_with_the_same_weights(
    case: str, tiny: Make, technique: Make, corpus: Make, fit: Make, graphs: list[Any]
) -> None:
    name, overrides, values, compiled = CASES[case]
    states = []
    for execution in (Execution(), Execution(compiled=True)):
        stage = technique(name, *overrides, **values)
        stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
        stage.execution = execution
        fit(stage)
        stage.release()
        stage.finish()
        states.append(stage.model.state_dict())
    straight, other = states
    assert straight.keys() == other.keys()
    for key, expected in straight.items():
        assert torch.allclose(expected, other[key], atol=1e-5), key
    assert len(graphs) == compiled + 1, "both blocks at once, where they are compiled, and the loss"


def test_blocks_whose_attention_is_read_run_as_they_are(
    tiny: Make, technique: Make, corpus: Make, fit: Make, graphs: list[Any]
) -> None:
    """The first block and the loss are compiled; what the compiler would hide is read of the others."""
    losses = [f"+loss@pipeline.distill.losses.{name}={name}" for name in ("relations", "jsd")]
    states = []
    for execution in (Execution(), Execution(compiled=True)):
        stage = technique("distill", *losses, steps=STEPS, pad_to=64)
        teacher = tiny("causal_lm")
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.mul_(1.5)
        stage.prepare(tiny("causal_lm"), corpus("causal_lm"), teacher)
        stage.execution = execution
        fit(stage)
        stage.release()
        states.append(stage.model.state_dict())
    for key, expected in states[0].items():
        assert torch.allclose(expected, states[1][key], atol=1e-5), key
    assert len(graphs) == 3, "a block with gradient, one without, and the loss"
