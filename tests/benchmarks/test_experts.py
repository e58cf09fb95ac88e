"""The benchmark of experts: its arms differ in one setting, and its mixture is as small as is said."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import experts
from slimexp.model.base import parameter_count


@pytest.fixture
def arguments() -> argparse.Namespace:
    return argparse.Namespace(runs=Path("runs"), toy=False, share=0.75, overrides=[])


def test_arms_differ_in_what_experts_go_by_alone(arguments: argparse.Namespace) -> None:
    configs = [experts.planned(arm, 1, "zoo:llama_python_source", arguments).cfg for arm in experts.ARMS]
    assert [cfg.pipeline.prune_structured.experts for cfg in configs] == ["reap", "frequency", "merge"]
    for cfg in configs:
        cfg.pipeline.prune_structured.experts = cfg.name = "one"
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].pipeline.prune_structured.budget.share == 0.75 and configs[0].measure.task.limit is None


def test_the_mixture_takes_at_most_16_mb(arguments: argparse.Namespace) -> None:
    source = experts.mixture(arguments).cfg.model
    config = AutoConfig.for_model(**source.config, vocab_size=source.tokenizer.vocab_size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert 6_500_000 < parameter_count(model) <= 8_000_000, "two bytes each"


@pytest.mark.fast
def test_arms_are_those_of_this_run_and_not_of_another_share() -> None:
    def point(key: str, mb: float) -> Any:
        figures = {"disk_mb": mb, "size_ratio": mb / 10}
        chain = ("prune_structured", "distill") if key.endswith("distill") else ("prune_structured",)
        return SimpleNamespace(keys=(key,), chain=chain, dense=False, value=figures.get,
                               runs=(f"experts-{key.partition(' ')[0]}",))  # fmt: skip

    points = [point(f"{arm} {share} {stage}", 10 * share)
              for share in (0.5, 0.75) for arm in experts.ARMS for stage in ("cut", "distill")]  # fmt: skip
    asked: list[int] = []
    comparisons = SimpleNamespace(interval=lambda index, _: asked.append(index), compare=lambda *_: None)
    section: Any = SimpleNamespace(points=points, comparisons=comparisons)
    keys = {arm: [f"{arm} 0.5 distill"] for arm in experts.ARMS}
    parents: dict[str, str | None] = {f"{arm} 0.5 distill": f"{arm} 0.5 cut" for arm in experts.ARMS}
    assert [(row.arm, row.size) for row in experts.rows(section, keys, parents)] == [(arm, 5.0) for arm in experts.ARMS]
    assert asked == list(range(6))


@pytest.mark.fast
def test_the_table_says_what_is_kept() -> None:
    rows = [
        experts.Row("reap", 11.5, 0.82, (0.9, 0.88, 0.92), (0.98, 0.97, 0.99), None),
        experts.Row("merge", 11.5, 0.82, None, (0.97, 0.96, 0.98), (-0.01, -0.02, 0.001)),
    ]
    lines = experts.table(rows).splitlines()
    assert lines[2] == "| pruned by REAP | 11.50 | 0.82x | 90.00 % [88.00, 92.00] | 98.00 % [97.00, 99.00] |  |"
    assert lines[3] == "| merged | 11.50 | 0.82x |  | 97.00 % [96.00, 98.00] | -1.00 % [-2.00, +0.10] |"
