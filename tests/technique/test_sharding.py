"""Weights are cut into shards of one type, a block at a time, whatever type they are mapped in."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from slimexp import artifact
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bytes
from slimexp.technique.sharding import shard
from slimexp.technique.training import Execution
from slimexp.weight.shard import whole, whole_copy

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


def test_what_a_checkpoint_gathers_is_in_memory_of_its_own(tiny: Make, mesh: DeviceMesh) -> None:
    """Even where a shard is the whole: training goes on in it while the checkpoint is written."""
    family = tiny("causal_lm")
    family.model.register_buffer("seen", torch.ones(3))
    expected = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    shard(family, mesh, dtype=torch.float32, low_precision=False)
    state = family.model.state_dict()
    copies = {name: whole_copy(tensor, keep=True) for name, tensor in state.items()}
    for tensor in state.values():
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    assert all(torch.equal(copies[name], tensor) for name, tensor in expected.items())
    assert all(whole_copy(tensor, keep=False).numel() == 0 for tensor in state.values())


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


BART = {"model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(("share", "dropout"), [(0.5, True), (0.0, True), (0.5, False)])
def test_layers_that_are_left_out_are_known_before_training(
    technique: Make, corpus: Make, share: float, dropout: bool
) -> None:
    """A model is in eval mode until the trainer, which must know of them, has started."""
    source = Scratch(config={**BART, "decoder_layerdrop": share}, tokenizer=Bytes(), max_length=16)
    stage = technique("finetune", steps=100, dropout=dropout)
    family = source.load(task="seq2seq", texts=list, labels=())
    family.model.eval()
    stage.prepare(family, corpus("seq2seq"), None)
    stage.execution = Execution(recorded=True)
    assert stage.idle_parameters is bool(share and dropout)
    assert stage.records is not stage.idle_parameters  # a recording would leave out the same ones at every step
