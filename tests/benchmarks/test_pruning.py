"""Benchmarks of pruning: tables from records, targets that are missed are named."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import prune_curve, prune_large, prune_peers, prune_structured


@pytest.mark.fast
def test_a_pruning_curve_is_a_table_and_a_picture(tmp_path: Path) -> None:
    curves = {"magnitude": {0.1: [11.0], 0.5: [20.0]}, "finetuned": {0.1: [10.0, 10.2], 0.5: [10.9, 11.1]}}
    output = prune_curve.table(10.0, curves).splitlines()
    assert output[2:5] == ["| 0 % | 1.000x | 1.000x |", "| 10 % | 1.100x | 1.010x |", "| 50 % | 2.000x | 1.100x |"]
    prune_curve.draw(10.0, curves, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize("method", ["magnitude", "wanda", "finetuned"])
def test_a_point_of_a_pruning_curve_is_one_command(method: str) -> None:
    from slimexp.config.check import check
    from slimexp.config.composition import compose

    arguments = argparse.Namespace(runs="runs", name="curve", overrides=["trainer=fast"])
    cfg = compose(prune_curve.overrides(method, 0.3, 1, arguments))
    check(cfg)
    assert (cfg.pipeline.prune.steps > 0) == ("kl" in cfg.pipeline.prune.losses) == (method == "finetuned")
    scorer = {"magnitude": "Magnitude", "wanda": "Wanda"}.get(method, "SparseGPT")
    assert cfg.pipeline.prune.importance._target_.endswith(f".{scorer}")


def test_a_toy_goes_through_every_way_to_prune(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--toy", "wanda 2:4", "pipeline.prune.importance.rows=2"])
    prune_large.main()
    output = capsys.readouterr().out
    assert "| wanda 2:4 | 50.0% |" in output and "| no GPU | 1.5 |" in output and "need a CUDA GPU" in output


@pytest.mark.fast
def test_a_slow_arm_and_a_large_one_miss_their_targets() -> None:
    costs = {"wanda": prune_large.Cost(61, 1.2, 0.5), "sparsegpt": prune_large.Cost(61, 1.6, 0.5)}
    assert prune_large.missed(costs) == ["wanda took 61 s", "sparsegpt took 1.60 times the weights in memory"]
    assert "| 16 | graph | 2.00 | 1.00 | 2.00x |" in prune_large.kernels_table({(16, "graph"): (2.0, 1.0)})


@pytest.mark.fast
def test_a_peer_is_better_only_if_it_prunes_as_much() -> None:
    own, peer = prune_peers.Row(4.0, 0.5, 1), prune_peers.Row(3.9, 0.5, 1)
    assert prune_peers.higher(own, peer, 0.01) and not prune_peers.higher(own, peer, 0.05)
    assert not prune_peers.higher(own, peer._replace(zeros=0.0), 0.01)
    lines = prune_peers.table(own, {("2:4", "wanda"): (own, peer), ("2:4", "magnitude"): (own, "no")}).splitlines()
    assert lines[3] == "| 2:4 | wanda | 4.000 | 50.0% | 1 | 3.900 | 50.0% | 1 |"
    assert lines[4] == "| 2:4 | magnitude | 4.000 | 50.0% | 1 | failed: no | | |"


@pytest.mark.fast
def test_a_peer_that_cuts_better_is_named_and_one_that_hangs_says_where() -> None:
    axes = prune_peers.Axes("docstring_topic", "layers, ffn", ("ffn", "heads, ffn"))
    cuts: prune_peers.Cuts = {
        ("ffn", prune_peers.PEER_ROW): prune_peers.Cut(0.36, 0.75, 5),
        ("heads, ffn", prune_peers.PEER_ROW): prune_peers.Cut(0.33, 0.75, 5),
        ("ffn", "slimexp, magnitude"): prune_peers.Cut(0.35, 0.75, 1),
        ("layers, ffn", "slimexp, activation"): prune_peers.Cut(0.34, 0.75, 1),
    }
    assert prune_peers.beaten(axes, cuts, "max", 0.005) == ["ffn"]
    assert prune_peers.beaten(axes, cuts, "min", 0.005) == ["heads, ffn"]
    axes = axes._replace(fastnas=True)
    cuts[prune_peers.UNLIKE, prune_peers.FASTNAS_ROW] = prune_peers.Cut(0.36, 0.75, 9)
    cuts[prune_peers.UNLIKE, prune_peers.OWN_ROW] = prune_peers.Cut(0.35, 0.75, 9)
    assert prune_peers.beaten(axes, cuts, "max", 0.005) == ["ffn", prune_peers.UNLIKE]
    frame = 'File "/x/site-packages/torch_pruning/dependency/group.py", line 86 in has_pruning_op'
    output = prune_peers.reason(f"warned\nTimeout (0:01:00)!\nThread 0x1:\n  {frame}\n")
    assert output == "Timeout (0:01:00)! at torch_pruning/dependency/group.py, line 86 in has_pruning_op"
    assert "| heads, ffn | peer | failed: no | | |" in prune_peers.cuts_table("f1", {("heads, ffn", "peer"): "no"})


@pytest.mark.fast
def test_a_peer_s_model_of_unlike_widths_is_the_one_that_it_saved() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    state = LlamaForCausalLM(config).state_dict()
    for name in ("up_proj", "gate_proj"):
        state[f"model.layers.1.mlp.{name}.weight"] = state[f"model.layers.1.mlp.{name}.weight"][:16]
    state["model.layers.1.mlp.down_proj.weight"] = state["model.layers.1.mlp.down_proj.weight"][:, :16]
    model = prune_peers.unlike_model(config, state)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, state["model.layers.1.mlp.up_proj.weight"])
    assert not hasattr(config, "slimexp_widths")
    assert model(input_ids=torch.arange(5)[None]).logits.shape == (1, 5, 64)


@pytest.mark.fast
def test_the_structured_benchmark_holds_means_against_targets(make_record: Callable[..., Any]) -> None:
    base = {"cer": 0.015, "params_live": 100.0}
    metrics = {"cer": 0.016, "params_live": 74.0, "latency_ratio": 0.8, "decode_ratio": 1.2, "latency_noisy": 0.0}
    rows = [
        make_record(baseline=base, metrics=metrics),
        make_record(baseline=base, metrics=metrics | {"decode_ratio": 1.34}, seed=1),
    ]
    targets = {"kept": 0.98, "latency": 1.25, "decode": 1.25}
    assert prune_structured.missed(rows, targets, 0.75) == []
    assert prune_structured.missed(rows[:1], targets, 0.7) == ["decode 1.2 < 1.25", "parameters 0.74 > 0.7"]
    assert "| 1 | 74.0% | 0.0150 | 0.0160 | 98.4% | 1.25x | 1.34x | 1 s |" in prune_structured.table(rows)
