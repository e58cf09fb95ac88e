"""How many devices a trainer's settings ask for, and what cannot be done on several."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from transformers import PreTrainedConfig

from slimexp.technique.finetune import Finetune
from slimexp.technique.sharding import FSDP

FIND_UNUSED = "ddp_find_unused_parameters_true"
STRATEGIES = ("auto", "ddp", FIND_UNUSED, FSDP)


def is_cuda(node: DictConfig) -> bool:
    """Whether the trainer's settings choose GPUs."""
    accelerator = node.get("accelerator", "auto")
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def per_node(node: DictConfig) -> int:
    """Number of devices on each machine, 1 at least.

    Raises:
        ValueError: It is no number of devices.
    """
    value = node.get("devices", 1)
    if isinstance(value, list | tuple | ListConfig):
        if not is_cuda(node) or not value or len(set(value)) < len(value) or not all(map(_is_whole, value)):
            raise ValueError(f"trainer.devices must be a number, or distinct numbers of GPUs, got {list(value)}")
        return len(value)
    if value in ("auto", -1, "-1") and not isinstance(value, bool):
        return max(1, torch.cuda.device_count()) if is_cuda(node) else 1
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not _is_whole(value) or value < 1:
        raise ValueError(f"trainer.devices must be a whole number >= 1 (or auto, for all GPUs there are), got {value}")
    return int(value)


def total(node: DictConfig) -> int:
    """Number of devices on all machines together.

    Raises:
        ValueError: Settings are no numbers.
    """
    nodes = node.get("num_nodes", 1)
    if isinstance(nodes, str) and nodes.isdecimal():
        nodes = int(nodes)
    if not _is_whole(nodes) or nodes < 1:
        raise ValueError(f"trainer.num_nodes must be a whole number >= 1, got {nodes}")
    return per_node(node) * int(nodes)


def shards(node: DictConfig) -> int:
    """Number of devices that weights, gradients and states are spread over; 1 where each holds all of them."""
    return total(node) if node.get("strategy") == FSDP else 1


def index(node: DictConfig) -> int:
    """Number of the GPU that this process computes on.

    Raises:
        ValueError: Settings are no numbers.
    """
    wanted = node.get("devices", 1)
    local = int(os.environ.get("LOCAL_RANK", 0)) if per_node(node) > 1 else 0
    return int(wanted[local]) if isinstance(wanted, list | tuple | ListConfig) else local


def check(node: DictConfig) -> None:
    """Refuse devices that are not there, machines that cannot meet, and strategies of another kind.

    Args:
        node: Configuration of the trainer.

    Raises:
        ValueError: The message names the setting and the way out.
    """
    count, everywhere = per_node(node), total(node)
    there = torch.cuda.device_count()
    wanted = node.get("devices", 1)
    if is_cuda(node):
        highest = max(wanted) + 1 if isinstance(wanted, list | tuple | ListConfig) else count
        if highest > max(there, 1):
            raise ValueError(
                f"trainer.devices={wanted} asks for more GPUs than there are: torch sees {there}"
                f"{' (CUDA_VISIBLE_DEVICES)' if 'CUDA_VISIBLE_DEVICES' in os.environ else ''}: "
                f"set trainer.devices={max(there, 1)}, or auto for all"
            )
    elif count > (cores := os.cpu_count() or 1):
        raise ValueError(f"trainer.devices={wanted} asks for more processes than the {cores} cores: set fewer")
    strategy = node.get("strategy", "auto")
    if (isinstance(strategy, str) and strategy not in STRATEGIES) or not isinstance(strategy, str):
        raise ValueError(f"trainer.strategy must be one of {', '.join(STRATEGIES)}, got {strategy}")
    _check_meeting(count, everywhere)


def check_stages(node: DictConfig, techniques: Mapping[str, Finetune], config: PreTrainedConfig) -> None:
    """Refuse stages that cannot be trained on the devices.

    Args:
        node: Configuration of the trainer.
        techniques: Technique of each stage, by the stage's name.
        config: Configuration of the model that the run starts from.

    Raises:
        ValueError: Names the stage, and the way out.
    """
    count = total(node)
    if count == 1:
        return
    for name, technique in techniques.items():
        if not technique.steps:
            continue  # done by the first process
        if technique.batch_size % count:
            nearest = max(1, round(technique.batch_size / count)) * count
            raise ValueError(
                f"pipeline.{name}.batch_size counts the rows on all {count} devices together and must be a multiple of "
                f"{count}, got {technique.batch_size}: set pipeline.{name}.batch_size={nearest}"
            )
        if node.get("strategy", "auto") == FSDP and (why := _needs_whole(technique, config)):
            raise ValueError(f"trainer.strategy=fsdp cannot do pipeline.{name}, {why}: use trainer=ddp")


def _needs_whole(technique: Finetune, config: PreTrainedConfig) -> str | None:
    """Why it needs whole weights between steps, or on one device alone; ``None`` if it does not."""
    if technique.drops_layers(config):
        return "whose devices each leave out other layers (layerdrop of the model, with dropout=true)"
    if technique.completion is not None and technique.completion.on_policy:
        return "whose student writes texts of other lengths on every device"
    return technique.whole_weights or technique.whole_losses


def external() -> dict[str, str] | None:
    """Environment by which processes find each other, where ``torchrun`` or Slurm started them; else ``None``."""
    if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        return {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    if not TorchElasticEnvironment.detect() and SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        slurm = SLURMEnvironment(auto_requeue=False)
        return {
            "RANK": str(slurm.global_rank()),
            "LOCAL_RANK": str(slurm.local_rank()),
            "WORLD_SIZE": str(slurm.world_size()),
            "GROUP_RANK": str(slurm.node_rank()),
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": str(slurm.main_port),
        }
    return None


def _check_meeting(count: int, everywhere: int) -> None:
    if everywhere == 1 and "RANK" not in os.environ:
        return  # tasks of Slurm that train by themselves, each its own run
    started = external()
    if started is not None and int(started["WORLD_SIZE"]) != everywhere:
        raise ValueError(
            f"{started['WORLD_SIZE']} processes were started (torchrun, srun), and trainer.devices * trainer.num_nodes "
            f"is {everywhere}: set the two to what was started, or start the command once, by itself"
        )
    if everywhere > count and started is None and not {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys():
        raise ValueError(
            f"trainer.num_nodes={everywhere // count} needs a place for the machines to meet: start the command on "
            f"each by torchrun --nnodes={everywhere // count} --nproc-per-node={count} --rdzv-endpoint=HOST:PORT "
            "-m slimexp.train, by srun, or with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
