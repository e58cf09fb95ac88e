"""Experts of a mixture are rounded and packed one by one, and plain transformers loads them again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from slimexp import artifact
from slimexp.format.base import Artifact
from slimexp.model.experts import GATE_UP, is_stack, stacks
from slimexp.model.serving import refusal
from slimexp.serialization.loadable import dequantizes_at_load
from slimexp.serialization.shards import Reader
from tests.cut.test_expert_use import MIXTURES

Make = Callable[..., Any]
GPTQ = "+rounding@pipeline.quantize.rounding=gptq"
FLOATS = {"activation_bits": None, "group_size": None, "min_coverage": 0.01}
QWEN = {"model_type": "qwen3_moe", **MIXTURES["qwen3_moe"]}
GIVEN = "+pipeline.quantize.allocation={_target_:slimexp.allocation.given.Given,bits:{*.experts.*:3,*:8}}"
EMBEDDINGS = pytest.mark.skipif(not dequantizes_at_load(), reason="needs transformers >= 5.21")
ROWS = [("one and two", "three!", 0), ("four", "five", 1)]


@pytest.fixture
def quantized(technique: Make, corpus: Make) -> Make:
    """A stage that has rounded a model."""

    def make(family: Any, *overrides: str, **values: Any) -> Any:
        stage = technique("quantize", *overrides, **{"bits": 4, **FLOATS} | values)
        stage.prepare(family, corpus("causal_lm"), None)
        return stage

    return make


@torch.no_grad()
def outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids).logits
    return logits


@pytest.mark.parametrize("kind", MIXTURES)
@torch.no_grad()
def test_packed_experts_are_small_and_come_back_as_they_were(
    tiny: Make, quantized: Make, tmp_path: Path, kind: str
) -> None:
    family = tiny("causal_lm", model_type=kind, **MIXTURES[kind])
    artifact.save(family, tmp_path / "dense", dtype=torch.float32, stages=[])
    stage = quantized(family)
    figures = stage.finish()
    assert figures["share"] > 0.7
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    batch = family.encode(ROWS)
    expected = stage.family.forward(batch)[0]
    for load in (artifact.load, artifact.deployed, artifact.served):
        assert torch.equal(load(tmp_path / "a").forward(batch)[0], expected), load
    ids = batch["input_ids"][:1]
    prompts = {"max_new_tokens": 4, "do_sample": False}
    written = [family.model.generate(ids, **prompts) for family in (stage.family, artifact.deployed(tmp_path / "a"))]
    assert torch.equal(*written)
    bytes_of = {}
    for name in ("dense", "a"):
        with Reader(tmp_path / name) as state:
            bytes_of[name] = sum(state[key].nbytes for key in state if "experts." in key and "shared" not in key)
    assert bytes_of["a"] < bytes_of["dense"] / 4  # 4 bits, and a scale for each row of few
    assert "experts" in str(refusal(tmp_path / "a"))  # no kernel multiplies them


@pytest.mark.parametrize(("dtype", "bits", "atol"), [(torch.float32, 8, 0), (torch.bfloat16, 4, 8e-3)])
@torch.no_grad()
def test_plain_transformers_loads_packed_experts(
    tiny: Make, quantized: Make, tmp_path: Path, dtype: torch.dtype, bits: int, atol: float
) -> None:
    family = tiny("causal_lm", **QWEN)
    family.model.to(dtype)
    stage = quantized(family, bits=bits)
    artifact.save(stage.family, tmp_path / "a", dtype=dtype, stages=[])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=dtype).eval()
    ids = torch.arange(12).view(2, 6) + 5
    torch.testing.assert_close(outputs(plain, ids), outputs(stage.family.model, ids), atol=atol, rtol=0)


@torch.no_grad()
def test_experts_of_a_type_that_cannot_be_cut_are_rounded_too(tiny: Make, quantized: Make, tmp_path: Path) -> None:
    values = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    family = tiny("causal_lm", model_type="glm4_moe", head_dim=8, moe_intermediate_size=16, **values)
    stage = quantized(family, GPTQ)
    shares = [share for name, share in stage.finish().items() if name.startswith("expert_tokens/model.layers.1.")]
    assert len(shares) == 4 and sum(shares) == pytest.approx(2, abs=1e-4)
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    batch = stage.family.encode(ROWS)
    assert torch.equal(artifact.deployed(tmp_path / "a").forward(batch)[0], stage.family.forward(batch)[0])


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ([], {"bits": 8, "activation_bits": 8}),
        (["quantizer@pipeline.quantize.quantizer=lsq"], {}),
        ([], {"exclude": "['*.self_attn.*']"}),
        pytest.param([], {"embeddings": True}, marks=EMBEDDINGS),
        ([GIVEN], {"bits": 8}),
    ],
)
@torch.no_grad()
def test_experts_are_packed_beside_layers_of_other_grids(
    tiny: Make, quantized: Make, tmp_path: Path, overrides: list[str], settings: dict[str, Any]
) -> None:
    stage = quantized(tiny("causal_lm", **QWEN), *overrides, **settings)
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    batch = stage.family.encode(ROWS)
    expected = stage.family.forward(batch)[0]
    for load in (artifact.load, artifact.deployed):
        torch.testing.assert_close(load(tmp_path / "a").forward(batch)[0], expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_gptq_rounds_each_expert_by_its_own_tokens(tiny: Make, quantized: Make) -> None:
    """The outputs of an expert on the tokens that it sees move less than rounded to nearest."""
    dense, seen = tiny("causal_lm", **QWEN), {}

    def keep(module: Any, inputs: Any) -> None:
        seen.setdefault("x", []).append(inputs[0])
        seen.setdefault("chosen", []).append(inputs[1])

    stages = [quantized(tiny("causal_lm", **QWEN), *rounding, bits=2) for rounding in ([], [GPTQ])]
    experts = dense.blocks()["decoder"][0].mlp.experts
    handle = experts.register_forward_pre_hook(keep)
    for batch in stages[1]._calibration_batches(stages[1].rounding.rows):
        dense.run(batch)
    handle.remove()
    x, chosen = torch.cat(seen["x"]), torch.cat(seen["chosen"])
    errors = []
    for stage in stages:
        rounded = stage.family.blocks()["decoder"][0].mlp.experts.gate_up_proj
        own = [(x[(chosen == e).any(1)], rounded[e] - experts.gate_up_proj[e]) for e in range(len(rounded))]
        errors.append(sum(float(linear(tokens, off).square().sum()) for tokens, off in own))
    assert errors[1] < 0.9 * errors[0]


@torch.no_grad()
def test_an_expert_without_tokens_is_rounded_to_nearest_and_said(
    tiny: Make, quantized: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    family, plain = tiny("causal_lm", **QWEN), tiny("causal_lm", **QWEN)
    for each in (family, plain):
        router = each.blocks()["decoder"][1].mlp.gate
        router.weight[2] = 0
        router.register_forward_hook(lambda _, __, out: (*out[:2], torch.where(out[2] == 2, 3, out[2])))
    stage, nearest = quantized(family, GPTQ), quantized(plain)
    figures = stage.finish()
    assert figures["experts_unseen"] == 1 and figures["expert_tokens/model.layers.1.experts.2"] == 0
    shares = [share for name, share in figures.items() if name.startswith("expert_tokens/model.layers.0.")]
    assert sum(shares) == pytest.approx(2, abs=1e-4)
    assert "1 of 12 experts saw none" in (said := capsys.readouterr().out) and "rounding.rows" in said
    ours, theirs = (one.family.blocks()["decoder"][1].mlp.experts for one in (stage, nearest))
    assert torch.equal(ours.down_proj[2], theirs.down_proj[2])
    assert torch.equal(ours.gate_up_proj[2], theirs.gate_up_proj[2])
    assert not torch.equal(ours.gate_up_proj[0], theirs.gate_up_proj[0])


def test_masks_on_experts_stay_under_the_rounding_and_training_reaches_both(
    tiny: Make, quantized: Make, technique: Make, corpus: Make, tmp_path: Path
) -> None:
    prune = technique("prune", "importance@pipeline.prune.importance=magnitude", sparsity=0.5, min_coverage=0.01)
    prune.prepare(tiny("causal_lm", **QWEN), corpus("causal_lm"), None)
    prune.finish()
    stage = quantized(prune.family, GPTQ)
    experts = stage.family.blocks()["decoder"][0].mlp.experts
    zeros = {name: getattr(experts, name).detach() == 0 for name in (GATE_UP, "down_proj")}
    assert all(float(zero.float().mean()) > 0.4 for zero in zeros.values())
    before = experts.gate_up_proj.detach().clone()
    optimizer = torch.optim.SGD(stage.family.model.parameters(), lr=5.0)
    batch = stage.family.encode(ROWS)
    torch.nn.functional.cross_entropy(
        stage.family.forward(batch)[0].flatten(0, 1), batch["labels"].flatten(), ignore_index=-100
    ).backward()
    optimizer.step()
    assert not torch.equal(before, experts.gate_up_proj)
    assert all((getattr(experts, name)[zero] == 0).all() for name, zero in zeros.items())
    stage.finish()
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    with torch.no_grad():
        expected = stage.family.forward(batch)[0]
        for load in (artifact.load, artifact.deployed):
            assert torch.equal(load(tmp_path / "a").forward(batch)[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"symmetric": False}, r"experts without zero points: set symmetric=true"),
        ({"group_size": "tensor"}, r"experts have scales of their own: set group_size=null"),
        (
            {"allocation": "mixed_precision"},
            r"one width, and allocation has \[2, 3, 4, 5, 6, 8\] for them",
        ),
    ],
)
def test_grids_that_experts_could_not_be_loaded_on_are_refused_before_any_work(
    tiny: Make, technique: Make, settings: dict[str, Any], message: str
) -> None:
    overrides = [f"+allocation@pipeline.quantize.allocation={kind}"] if (kind := settings.get("allocation")) else []
    values = {"bits": 4, **FLOATS} | {key: value for key, value in settings.items() if key != "allocation"}
    with pytest.raises(ValueError, match=message):
        technique("quantize", *overrides, **values).inspect(tiny("causal_lm", **QWEN))


def test_experts_that_lie_the_other_way_round_are_no_stacks(tiny: Make) -> None:
    gpt_oss = tiny("causal_lm", model_type="gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    assert stacks(gpt_oss) == {}
    found = stacks(tiny("causal_lm", **QWEN))
    assert len(found) == 4 and all(map(is_stack, found.values()))


def test_an_export_that_knows_layers_alone_is_told_of_experts(tiny: Make, quantized: Make, tmp_path: Path) -> None:
    stage = quantized(tiny("causal_lm", **QWEN))
    artifact.save(stage.family, tmp_path / "a", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "a")
    assert model.bits[f"model.layers.0.mlp.experts.{GATE_UP}"] == 4
    assert "experts are among its packed weights" in str(model.experts)


def test_masks_alone_on_experts_are_in_the_way_of_no_export(
    tiny: Make, technique: Make, corpus: Make, tmp_path: Path
) -> None:
    prune = technique("prune", "importance@pipeline.prune.importance=magnitude", sparsity=0.5)
    prune.prepare(tiny("causal_lm", **QWEN), corpus("causal_lm"), None)
    prune.finish()
    artifact.save(prune.family, tmp_path / "a", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "a")
    assert GATE_UP in {row["tensor"] for row in model.content["attachments"]}
    assert model.bits == {} and model.experts is None
