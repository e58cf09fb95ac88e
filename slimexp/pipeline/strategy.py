"""Lightning's strategy for a number of devices: replicas that average gradients (DDP), or shards (FSDP2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from torch.optim import Optimizer

from slimexp.host import process_group
from slimexp.model.base import Batch
from slimexp.pipeline import devices
from slimexp.technique.parts import Divisible
from slimexp.technique.sharding import FSDP
from slimexp.weight.shard import placed, whole_copy

GATHERED = ("state_dict", "optimizer_states")  # parts of a checkpoint of shards that are made for it alone


def arguments(node: DictConfig, *, idle_parameters: bool) -> dict[str, Any]:
    """What a trainer is built with, beside its settings, on several devices.

    Args:
        node: Configuration of the trainer.
        idle_parameters: Whether there may be steps in which trained parameters have no gradient.
    """
    chosen, count = node.get("strategy", "auto"), devices.total(node)
    if count == 1:
        return {"strategy": "auto"}
    if chosen == FSDP:
        return {"strategy": _sharded(count)}
    return {"strategy": _replicated(idle_parameters or chosen == devices.FIND_UNUSED)}


def without_waiting(trainer: pl.Trainer) -> None:
    """Have a trainer on several devices not wait for all of them, by a copy from the GPU, before every batch.

    Lightning does so to spread a SIGTERM of the first process; here the others end with it.
    """
    if trainer.world_size > 1:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _replicated(idle_parameters: bool) -> Strategy:
    return Replicate(
        idle_parameters=idle_parameters,
        broadcast_buffers=False,  # masks are as large as weights, and change at few steps, which share them
        gradient_as_bucket_view=True,  # no second copy of the gradients
        timeout=process_group.COLLECTIVE,
    )


def _sharded(count: int) -> Strategy:
    return FullyShard(
        data_parallel_size=count,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
        timeout=process_group.COLLECTIVE,
    )


class Replicate(DDPStrategy):
    """Lightning's strategy for DDP; where passes are recorded, or may not fit, gradients are averaged after them.

    So are they where parameters may be idle: DDP looks for those in the graph, but takes the ones of a pass that it did
    not average for used ones.

    Args:
        idle_parameters: Whether there may be steps in which trained parameters have no gradient.
        settings: Those of Lightning's strategy.
    """

    def __init__(self, *, idle_parameters: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.idle_parameters = idle_parameters

    def configure_ddp(self) -> None:
        technique = self.lightning_module
        assert isinstance(technique, Divisible)
        if technique.records or self.idle_parameters:  # DDP would average within a recording
            process_group.broadcast(technique.parameters())
        else:
            super().configure_ddp()

    def training_step(self, batch: Batch, number: int) -> Any:
        technique = self.lightning_module
        assert isinstance(technique, Divisible)
        if not self.idle_parameters and not technique.apart(batch):
            return super().training_step(batch, number)
        with self.precision_plugin.train_step_context():
            loss = technique.training_step(batch, number)
        if (number + 1) % technique.accumulate == 0:  # not before the last batch of an optimizer step
            _average_gradients([weight for weight in technique.parameters() if weight.requires_grad])
        return loss


class FullyShard(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints that a training on one device goes on from, and the reverse."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return _gathered(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        stored = {
            name: placed(tensor, own[name]) if name in own else tensor
            for name, tensor in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(stored, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return _gathered(Strategy.optimizer_state(self, optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {name: _like(value, parameters[number]) for name, value in values.items()}
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)


def _average_gradients(weights: Sequence[torch.nn.Parameter]) -> None:
    """Make gradients of the devices their means; a weight that has none on any device is left without."""
    everywhere = process_group.all_gather([weight.grad is not None for weight in weights])
    for weight, *has_some in zip(weights, *everywhere, strict=True):
        if any(has_some) and weight.grad is None:  # an expert that no token of this device was routed to
            weight.grad = torch.zeros_like(weight)
    process_group.average([weight.grad for weight in weights if weight.grad is not None])


def _gathered(tree: Any) -> Any:
    """``tree`` with a copy of every tensor, whole and on the CPU; all take part, and the first process keeps it."""
    if isinstance(tree, torch.Tensor):
        return whole_copy(tree, keep=process_group.is_first())
    if isinstance(tree, Mapping):
        return {name: _gathered(value) for name, value in tree.items()}
    return [_gathered(value) for value in tree] if isinstance(tree, list) else tree


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """A number of an optimizer's state for each entry of ``parameter``, sharded as that is; others as they are."""
    has_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim
    return placed(value, parameter) if has_shape else value
