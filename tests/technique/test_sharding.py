"""Weights are cut into shards of one type, a block at a time, whatever type they are mapped in."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from slimexp import artifact
from slimexp.technique.sharding import shard
from slimexp.weight.shard import whole

Make = Callable[..., Any]


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("task", ["causal_lm", "seq2seq"])
def test_weights_of_16_bits_become_shards_of_32(tiny: Make, tmp_path: Any, mesh: DeviceMesh, task: str) -> None:
    artifact.save(tiny(task), tmp_path / "made", dtype=torch.bfloat16, stages=[])
    family, expected = (artifact.load(tmp_path / "made", keep_type=keep) for keep in (True, False))
    assert {weight.dtype for weight in family.model.parameters()} == {torch.bfloat16}
    shard(family, mesh, dtype=torch.float32, low_precision=False)
    of_32 = dict(expected.model.named_parameters())
    for name, weight in family.model.named_parameters():
        assert isinstance(weight, DTensor) and weight.dtype == torch.float32
        assert torch.equal(whole(weight.detach()), of_32[name])
    batch = family.encode([("some text", "other", None)])
    assert torch.equal(family.forward(batch)[0], expected.forward(batch)[0])


@pytest.mark.parametrize(
    ("name", "overrides", "values", "maps"),
    [
        ("finetune", [], {}, True),
        ("prune", [], {}, True),
        ("quantize", [], {"bits": 4, "activation_bits": None}, True),
        ("quantize", ["+rounding@pipeline.quantize.rounding=gptq"], {"bits": 4, "activation_bits": None}, False),
        ("quantize", ["+smoothing@pipeline.quantize.smoothing=awq"], {"bits": 4, "activation_bits": None}, False),
        ("prune_structured", [], {}, False),
        ("distill", ["+cut@pipeline.distill.cut=keep"], {"cut.ffn": 8}, False),
    ],
)
def test_weights_are_mapped_where_nothing_is_computed_with_them(
    technique: Make, name: str, overrides: list[str], values: dict[str, Any], maps: bool
) -> None:
    assert technique(name, *overrides, **{"steps": 2} | values).maps_weights is maps
