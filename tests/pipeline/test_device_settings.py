"""Devices that are not there, machines that cannot meet, and stages that cannot be split are refused in one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import BartConfig, LlamaConfig

from slimexp.config.composition import compose
from slimexp.pipeline import devices

Make = Callable[..., Any]
EXTERNAL = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXTERNAL:
        monkeypatch.delenv(name, raising=False)


def trainer(**values: Any) -> DictConfig:
    return OmegaConf.create({"accelerator": "cpu", **values})


@pytest.mark.parametrize(
    ("values", "gpus", "each", "in_all"),
    [
        ({}, 0, 1, 1),
        ({"devices": 2, "num_nodes": 3}, 0, 2, 6),
        ({"devices": "2"}, 0, 2, 2),
        ({"devices": "auto"}, 4, 1, 1),
        ({"devices": "auto", "accelerator": "gpu"}, 4, 4, 4),
        ({"devices": -1, "accelerator": "gpu", "num_nodes": 2}, 4, 4, 8),
        ({"devices": [1, 3], "accelerator": "gpu"}, 4, 2, 2),
    ],
)
def test_devices_are_counted(
    values: dict[str, Any], gpus: int, each: int, in_all: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert devices.per_node(trainer(**values)) == each
    assert devices.total(trainer(**values)) == in_all


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 0}, "whole number >= 1"),
        ({"devices": True}, "whole number >= 1"),
        ({"devices": 1.5}, "whole number >= 1"),
        ({"devices": [0]}, "distinct numbers of GPUs"),
        ({"devices": [1, 1], "accelerator": "gpu"}, "distinct numbers of GPUs"),
        ({"devices": 3, "accelerator": "gpu"}, "more GPUs than there are: torch sees 2.*set trainer.devices=2"),
        ({"devices": [2], "accelerator": "gpu"}, "more GPUs than there are: torch sees 2"),
        ({"devices": 4097}, "more processes than the"),
        ({"num_nodes": 0}, "trainer.num_nodes must be"),
        ({"num_nodes": 2}, "needs a place for the machines to meet.*torchrun --nnodes=2 --nproc-per-node=1"),
        ({"strategy": "deepspeed"}, "trainer.strategy must be one of auto, ddp"),
        ({"strategy": 3}, "trainer.strategy must be one of"),
    ],
)
def test_what_is_not_there(values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message) as caught:
        devices.check(trainer(**values))
    assert "\n" not in str(caught.value)


def test_processes_that_were_started_must_be_as_many_as_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    devices.check(trainer(devices=2))
    devices.check(trainer(devices=1, num_nodes=2))
    for count in (1, 3):
        with pytest.raises(ValueError, match="2 processes were started"):
            devices.check(trainer(devices=count))


def test_tasks_of_slurm_that_train_by_themselves_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    devices.check(trainer())


def test_machines_meet_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    devices.check(trainer(num_nodes=2))


@pytest.mark.parametrize(
    ("stage", "words", "strategy", "message"),
    [
        ("finetune", ["batch_size=5"], "ddp", r"multiple of 2, got 5: set pipeline\.finetune\.batch_size=4"),
        ("finetune", ["batch_size=1"], "ddp", r"set pipeline\.finetune\.batch_size=2"),
        ("prune", ["importance=wanda"], "fsdp", "whose importance observes or moves whole layers"),
        ("prune", ["importance=l0"], "fsdp", "whose importance has gates"),
        ("prune", ["regrow=0.3"], "fsdp", "whose regrow and allocation change whole layers"),
        ("quantize", ["freeze=0.5"], "fsdp", "whose grids freeze"),
    ],
)
def test_stages_that_cannot_be_trained_on_several(
    stage: str, words: list[str], strategy: str, message: str, pipeline: Make, overrides: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    importance = [word for word in words if word.startswith("importance")]
    chosen = [word.replace("importance", f"importance@pipeline.{stage}.importance") for word in importance]
    values = [f"pipeline.{stage}.{word}" for word in words if word not in importance]
    several = ["trainer.devices=2", f"trainer.strategy={strategy}", f"pipeline.{stage}.steps=4"]
    with pytest.raises(ValueError, match=message):
        pipeline(overrides(stage, *chosen, *values, *several))
    pipeline(overrides(stage, *chosen, *values, *several[1:]))  # on one device, it is what is always done


def test_what_a_loss_learns_is_in_no_shard(technique: Make) -> None:
    loss = "+loss@pipeline.distill.losses.hidden=hidden"
    node = trainer(devices=2, strategy="fsdp")
    devices.check_stages(node, {"distill": technique("distill", loss, steps=4)}, LlamaConfig())
    learned = technique("distill", loss, steps=4, **{"losses.hidden.projection": True})
    with pytest.raises(ValueError, match=r"distill, whose loss hidden learns parameters, which are in no shard"):
        devices.check_stages(node, {"distill": learned}, LlamaConfig())


@pytest.mark.parametrize(("share", "dropout"), [(0.5, True), (0.0, True), (0.5, False)])
def test_layers_that_each_device_leaves_out_for_itself_are_in_no_shard(
    share: float, dropout: bool, technique: Make
) -> None:
    stages, config = {"finetune": technique("finetune", steps=4, dropout=dropout)}, BartConfig(decoder_layerdrop=share)
    devices.check_stages(trainer(devices=2, strategy="ddp"), stages, config)
    node = trainer(devices=2, strategy="fsdp")
    if share and dropout:
        with pytest.raises(ValueError, match=r"fsdp cannot do pipeline\.finetune, whose devices each leave out"):
            devices.check_stages(node, stages, config)
    else:
        devices.check_stages(node, stages, config)


def test_a_stage_without_training_takes_any_batch(
    pipeline: Make, overrides: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    wanda = ["importance@pipeline.prune.importance=wanda", "pipeline.prune.steps=0", "pipeline.prune.batch_size=5"]
    pipeline(overrides("prune", *wanda, "trainer.devices=2", "trainer.strategy=fsdp"))


def test_the_number_of_devices_is_no_other_work(pipeline: Make, overrides: Make) -> None:
    keys = [
        [stage.key for stage in pipeline(overrides("finetune", "pipeline.finetune.batch_size=4", *words)).stages]
        for words in ([], ["trainer.devices=2"], ["trainer.devices=2", "trainer.strategy=fsdp"])
    ]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_what_ships_takes_every_gpu(name: str) -> None:
    node = compose([f"trainer={name}"]).trainer
    assert (node.devices, node.strategy, node.accelerator) == ("auto", name, "gpu")
