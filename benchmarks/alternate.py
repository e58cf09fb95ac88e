"""A plain PyTorch loop that takes turns with the Trainer inside one training run; see ``benchmarks.overhead``."""

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import nn

from slimexp.loss.base import Outputs
from slimexp.model.base import Batch
from slimexp.technique.finetune import Finetune

SAVES = 5
ROUNDING = 1e-4  # of the norm of a tensor, after a few steps of AdamW


class Seconds(NamedTuple):
    """On the clock on the wall, and of all cores' work for this process: what neighbours cannot lengthen."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: "Seconds") -> "Seconds":
        return Seconds(self.wall - began.wall, self.cpu - began.cpu)


class PlainLoop:
    """What one would write by hand to train a technique's model, on a copy of it.

    Args:
        technique: Prepared and not yet trained. Its batches, losses, optimizer, clipping and schedule are used,
            nothing else of it.
    """

    def __init__(self, technique: Finetune) -> None:
        family = technique.family
        self.family = type(family)(copy.deepcopy(family.model), family.tokenizer, max_length=family.max_length)
        self.family.model.train()
        self.teacher = technique.teacher_family
        self.losses = list(technique.losses.values())
        self.steps, self.clip_norm = technique.steps, technique.clip_norm
        parameters = list(self.family.model.parameters())
        self.optimizer = technique._optimizer(
            [
                {"params": [p for p in parameters if p.ndim > 1]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ]
        )
        self.scheduler = technique._lr_scheduler(self.optimizer, num_training_steps=self.steps)
        rng = torch.get_rng_state()
        self.batches = iter(technique.train_dataloader())
        self.step = 0
        self.rng = rng  # dropout draws what the Trainer's model draws
        torch.set_rng_state(rng)

    def run(self, steps: int) -> Seconds:
        """What the next ``steps`` steps take."""
        rng, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
        torch.set_rng_state(self.rng)
        torch.use_deterministic_algorithms(False)  # nobody's plain loop has them on
        began = Seconds.now()
        for _ in range(steps):
            self._step(next(self.batches))
        seconds = Seconds.now().since(began)
        torch.use_deterministic_algorithms(deterministic)
        self.rng = torch.get_rng_state()
        torch.set_rng_state(rng)
        return seconds

    def _step(self, batch: Batch) -> None:
        teacher = None
        if self.teacher is not None:
            with torch.inference_mode():
                teacher = Outputs(*self.teacher.forward(batch))
        student = Outputs(*self.family.forward(batch))
        progress = self.step / self.steps
        loss = sum(term.weight * term(student, teacher, batch["labels"], progress).mean() for term in self.losses)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.family.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1


class Alternate(pl.Callback):
    """Times turns of the Trainer and of a ``PlainLoop`` in the order A B B A A B B A ...

    A turn of the Trainer lasts from one batch's start to another's: loading, all hooks, logging and progress bar are
    in it. After the warm-up both have trained on the same batches and must have the same weights, but for rounding:
    the Trainer forms logits in chunks.

    Args:
        path: JSON file that the seconds of the turns after the warm-up are written to.
        steps: Optimizer steps of a turn.
        warmup: Turns before the clock counts; odd, for both to have come equally far.
    """

    def __init__(self, *, path: str, steps: int, warmup: int) -> None:
        assert warmup % 2
        self.path = Path(path)
        self.steps = steps
        self.warmup = warmup
        self.trainer_s: list[Seconds] = []
        self.plain_s: list[Seconds] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        now = Seconds.now()
        assert isinstance(pl_module, Finetune)
        turn, within = divmod(trainer.global_step, self.steps)
        if within:
            return
        if turn == 0:
            self.plain = PlainLoop(pl_module)
        else:
            self.trainer_s.append(now.since(self._began))
            for _ in range(1 if turn == 1 else 0 if turn % 2 else 2):
                self.plain_s.append(self.plain.run(self.steps))
            if turn == self.warmup:
                require_same_weights(pl_module.model, self.plain.family.model)
        self._began = Seconds.now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        checkpoint = self.path.with_suffix(".ckpt")
        seconds = []
        for _ in range(SAVES):
            began = time.perf_counter()
            trainer.save_checkpoint(checkpoint)
            seconds.append(time.perf_counter() - began)
        timings = {
            "trainer_s": self.trainer_s[self.warmup :],
            "plain_s": self.plain_s[self.warmup :],
            "checkpoint_s": statistics.median(seconds),
            "checkpoint_mb": checkpoint.stat().st_size / 1e6,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
        }
        checkpoint.unlink()
        self.path.write_text(json.dumps(timings))


def require_same_weights(trained: nn.Module, plain: nn.Module) -> None:
    """Raise where two copies of a model, trained alike, differ by more than rounding."""
    for (name, parameter), reference in zip(trained.named_parameters(), plain.parameters(), strict=True):
        if (distance := (parameter - reference).norm() / reference.norm()) > ROUNDING:
            raise AssertionError(f"the loops did different maths: '{name}' differs by {distance:.2e} of its norm")
