"""Lightning's trainer and callbacks; they are built once before anything is loaded, to see that they can be."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from transformers import PreTrainedConfig

from slimexp.config.build import build
from slimexp.host import memory as host_memory
from slimexp.pipeline import devices, strategy
from slimexp.pipeline.trainer import Trainer
from slimexp.technique.router_balance import RouterBalance


def quiet() -> None:
    """Silence what Lightning logs below a warning, and those of its warnings that do not apply here."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "dataloader is not resumable",  # ``training_batches`` is resumable
        "does not have many workers",  # tokenizing takes a hundredth of the time of a step
        r"Found \d+ module.s. in eval mode",  # on purpose, where dropout is off
        "isinstance.treespec, LeafSpec.. is deprecated",  # Lightning's use of torch
        "broadcast_buffers. is deprecated",  # by a name that older torch does not know
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")


def device(trainer: DictConfig) -> torch.device:
    """The device that the trainer's settings choose, on which models are measured too."""
    return torch.device("cuda", devices.index(trainer)) if devices.is_cuda(trainer) else torch.device("cpu")


def memory(trainer: DictConfig) -> int:
    """Memory of each device that the trainer's settings choose, in bytes; processes on a CPU share the machine's."""
    chosen = device(trainer)
    if chosen.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(chosen).total_memory
    return host_memory.total() // devices.per_node(trainer)


def trainer(
    node: DictConfig,
    *,
    steps: int,
    accumulate: int,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[pl.loggers.Logger],
    folder: Path | None,
    idle_parameters: bool = False,
) -> Trainer:
    """The trainer of one stage.

    Args:
        node: Configuration of the trainer.
        steps: Number of optimizer steps.
        accumulate: Number of batches per optimizer step.
        callbacks: Lightning's callbacks.
        loggers: Lightning's loggers, which write the curves.
        folder: Folder of the stage; ``None`` for the one that the program runs in.
        idle_parameters: Whether there may be steps in which trained parameters have no gradient.

    Raises:
        ConfigError: Lightning refuses a setting.
        ValueError: ``node`` makes another trainer than slimexp's.
    """
    stage_trainer = build(
        node,
        **strategy.arguments(node, idle_parameters=idle_parameters),
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=list(loggers),
        log_every_n_steps=min(node.get("log_every_n_steps", 10), steps),
        default_root_dir=folder,
    )
    if not isinstance(stage_trainer, Trainer):
        own = f"{Trainer.__module__}.{Trainer.__qualname__}"
        raise ValueError(f"trainer must be a {own}, got {type(stage_trainer).__name__}: choose trainer=cpu or gpu")
    strategy.without_waiting(stage_trainer)
    return stage_trainer


def callbacks(node: DictConfig, group: DictConfig) -> list[pl.Callback]:
    """Callbacks of a stage, without a progress bar where the trainer's settings switch it off.

    Args:
        node: Configuration of the trainer.
        group: Configurations of the callbacks, by name.

    Raises:
        ValueError: A member of ``group`` is no callback of Lightning's.
    """
    built = {str(name): build(child) for name, child in group.items()}
    for name, callback in built.items():
        if not isinstance(callback, pl.Callback):
            shown = "null" if callback is None else type(callback).__name__
            raise ValueError(f"callback.{name} must be a Lightning callback, got {shown}: ~callback.{name} drops it")
    has_bar = node.get("enable_progress_bar", True)  # Lightning refuses a bar next to this switch
    return [callback for callback in built.values() if has_bar or not isinstance(callback, pl.callbacks.ProgressBar)]


def check(node: DictConfig, group: DictConfig) -> None:
    """Refuse settings that no stage can be trained with, by building a trainer of them.

    Args:
        node: Configuration of the trainer.
        group: Configurations of the callbacks, by name.

    Raises:
        ValueError: A setting is refused; the message names it and the way out.
    """
    if device(node).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator asks for a GPU, but torch sees no CUDA device: use trainer=cpu, on which "
            "trainer.devices=2 trains in two processes"
        )
    devices.check(node)
    if (value := node.get("log_every_n_steps", 10)) is None or value < 0:
        raise ValueError(f"trainer.log_every_n_steps must be >= 0, got {value}")
    if (value := node.get("deterministic")) not in (True, False, None, "warn"):
        raise ValueError(f"trainer.deterministic must be true, false or warn, got {value!r}")
    _try_trainer(node, callbacks(node, group))


def check_model(node: DictConfig, group: DictConfig, config: PreTrainedConfig) -> None:
    """Refuse callbacks that have nothing to do on a model.

    Args:
        node: Configuration of the trainer.
        group: Configurations of the callbacks, by name.
        config: Config of the run's model.

    Raises:
        ValueError: A callback is for other models; the message names it and the way out.
    """
    for callback in callbacks(node, group):
        if isinstance(callback, RouterBalance):
            callback.validate(config)


def _try_trainer(node: DictConfig, stage_callbacks: Sequence[pl.Callback]) -> None:
    """Build a trainer, and leave the switches of torch as they were."""
    switches: dict[str, Any] = {
        "mode": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }
    benchmark = torch.backends.cudnn.benchmark
    try:
        trainer(node, steps=1, accumulate=1, callbacks=stage_callbacks, loggers=(), folder=None)
    except Exception as error:
        message = " ".join(str(error).split()).removeprefix("trainer: ")
        raise ValueError(f"trainer: {message or type(error).__name__}") from error
    finally:
        torch.use_deterministic_algorithms(**switches)
        torch.backends.cudnn.benchmark = benchmark
