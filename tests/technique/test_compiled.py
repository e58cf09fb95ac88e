"""A stage whose blocks are compiled, with what sits on their layers, ends with the weights of one that is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from slimexp.technique.training import Execution

Make = Callable[..., Any]
STEPS = 4


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs that the compiler is given; they run in pieces, forward and backward as one does without it."""
    graphs: list[torch.fx.GraphModule] = []
    compile, run = torch.compile, lookup_backend("aot_eager")

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return run(graph, inputs)

    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile(function, backend=keep, fullgraph=True, **options)
    )
    torch._dynamo.reset()
    return graphs


def by(importance: str) -> str:
    return f"importance@pipeline.prune.importance={importance}"


def rounded(quantizer: str) -> str:
    return f"quantizer@pipeline.quantize.quantizer={quantizer}"


PRUNE = {"sparsity": 0.5, "steps": STEPS, "every": 1, "ramp": 0.75}
QUANTIZE = {"steps": STEPS, "bits": 4, "group_size": 16, "activation_bits": None, "workers": 0}
STATIC = {"activation_bits": 8, "calibration_rows": 2}
CASES = {  # name -> technique, overrides, values, graphs of blocks and of the loss
    "magnitude": ("prune", [by("magnitude")], PRUNE, 2),
    "n:m": ("prune", [by("magnitude"), "pattern@pipeline.prune.pattern=n_m"], PRUNE, 2),
    "movement": ("prune", [by("movement")], PRUNE, 2),
    "L0": ("prune", [by("l0")], PRUNE, 2),
    "calibrated": ("prune", [by("wanda")], PRUNE | {"importance.rows": 2}, 2),
    "regrowth": ("prune", [by("magnitude")], PRUNE | {"regrow": 0.1}, 2),
    "min-max, on at half, frozen at three quarters": ("quantize", [], QUANTIZE | {"start": 0.5, "freeze": 0.75}, 4),
    "affine": ("quantize", [], QUANTIZE | {"symmetric": False}, 2),
    "percentile": ("quantize", [rounded("percentile")], QUANTIZE, 2),
    "LSQ, frozen at half": ("quantize", [rounded("lsq")], QUANTIZE | {"freeze": 0.5}, 3),
    "tokens": ("quantize", [], QUANTIZE | {"activation_bits": 8}, 2),
    "PACT": ("quantize", ["quantizer@pipeline.quantize.activation_quantizer=pact"], QUANTIZE | STATIC, 2),
    "cache": ("quantize", [], QUANTIZE | {"cache_bits": 8}, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_training_ends_with_the_same_weights(
    case: str, tiny: Make, technique: Make, corpus: Make, fit: Make, graphs: list[Any]
) -> None:
    name, overrides, values, compiled = CASES[case]
    states = []
    for execution in (Execution(), Execution(compiled=True)):
        stage = technique(name, *overrides, **values)
        stage.prepare(tiny("causal_lm", num_hidden_layers=3), corpus("causal_lm"), None)
        stage.execution = execution
        fit(stage)
        stage.release()
        stage.finish()
        states.append(stage.model.state_dict())
    straight, other = states
    assert straight.keys() == other.keys()
    for key, expected in straight.items():
        assert torch.allclose(expected, other[key], atol=1e-5), key
    assert len(graphs) == compiled, "three blocks are compiled once"
