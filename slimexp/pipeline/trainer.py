"""Lightning's trainer, with the choices that suit the chip: they make a step fast, and change results by rounding."""

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.nn.attention import SDPBackend, sdpa_kernel

from slimexp.host import process_group
from slimexp.model.compiled import kinds, refusal
from slimexp.technique.finetune import Finetune
from slimexp.technique.training import Execution

# Blocks (of student and teacher) times steps, for each kind of block, above which compiling pays back: on an H100 a
# kind takes 6 s, and a block saves about 1 ms of a step, which is spent on starting kernels, more with quantizers.
_PAYS_BACK = 6_000

_WORTH_RECORDING = 30  # batches; recording takes as long as several

_BACKENDS = {
    name.lower(): backend for name, backend in SDPBackend.__members__.items() if name not in ("ERROR", "OVERRIDEABLE")
}


class Trainer(pl.Trainer):
    """Trains a stage.

    Args:
        attention: Kernels that attention may use, of ``flash_attention``, ``efficient_attention``, ``cudnn_attention``
            and ``math``; ``None`` for torch's own choice.
        compile: Whether blocks and losses go through ``torch.compile``, not in shards; ``"auto"``: on a GPU, where a
            stage is so long that it pays back.
        pad_to: Lengths are padded to a multiple of it, where the technique does not say.
        fused: Whether an optimizer that can do so updates all weights in one kernel, on a GPU.
        logits_at_once: Number of logits in memory at once, of student and of teacher; in shards all of a batch are.
        cuda_graphs: Whether the passes of a step are recorded as CUDA graphs, one for each shape of a batch, and
            replayed; ``"auto"``: on GPUs that each hold the model, where a stage is long enough.
        rows_at_once: Most rows of a batch in memory at once, on each device: larger ones are computed in parts, which
            add up to the same gradient. ``None``: whole, until memory runs out.
        activation_checkpointing: Whether blocks of the model that is trained keep their inputs alone, and compute
            activations anew in the backward pass; passes are not recorded then.
        options: Those of Lightning's trainer.

    Raises:
        ValueError: A value is not one of those.
    """

    def __init__(
        self,
        *,
        attention: Sequence[str] | None,
        compile: bool | Literal["auto"],
        pad_to: int,
        fused: bool,
        logits_at_once: int,
        cuda_graphs: bool | Literal["auto"],
        rows_at_once: int | None,
        activation_checkpointing: bool = False,
        **options: Any,
    ) -> None:
        for name, value in (("pad_to", pad_to), ("logits_at_once", logits_at_once), ("rows_at_once", rows_at_once)):
            if value is not None and value < 1:
                raise ValueError(f"trainer.{name} must be >= 1, got {value}")
        if attention is not None and (not attention or set(attention) - _BACKENDS.keys()):
            raise ValueError(
                f"trainer.attention must be some of {', '.join(sorted(_BACKENDS))}, or null for torch's own choice, "
                f"got {list(attention)}"
            )
        super().__init__(**options)
        self.attention = attention
        self.compile = compile
        self.pad_to = pad_to
        self.fused = fused
        self.logits_at_once = logits_at_once
        self.cuda_graphs = cuda_graphs
        if cuda_graphs is True and (why := self._not_recorded()):
            raise ValueError(f"trainer.cuda_graphs=true cannot be had {why}: set it to auto or false")
        if compile is True and self._shards:
            raise ValueError(
                "trainer.compile=true cannot be had by trainer.strategy=fsdp, which gathers a block before its call: "
                "set it to auto or false"
            )
        self.rows_at_once = rows_at_once
        self.activation_checkpointing = activation_checkpointing

    @property
    def _shards(self) -> bool:
        return isinstance(self.strategy, ModelParallelStrategy)

    def suit(self, technique: Finetune) -> None:
        """Have a prepared technique train as suits the chip."""
        technique.execution = Execution(
            pad_to=self.pad_to,
            compiled=self._pays_back(technique) if self.compile == "auto" else self.compile,
            fused=self.fused,
            logits_at_once=self.logits_at_once,
            recorded=self._records(technique) if self.cuda_graphs == "auto" else self.cuda_graphs,
            recomputed=self.activation_checkpointing,
        )
        technique.rows_at_once = self.rows_at_once or self._fitting_rows(technique)

    def _fitting_rows(self, technique: Finetune) -> int | None:
        """Most rows that every device is sure to hold, where none that runs out of memory could repeat a step.

        GPUs that each hold the model find out by themselves how many they hold, which are more.
        """
        if self.strategy.root_device.type == "cuda" and not isinstance(self.strategy, ModelParallelStrategy):
            return None
        return min(filter(None, process_group.all_gather(technique.fitting_rows)), default=None)

    def attention_kernels(self) -> AbstractContextManager[None]:
        """Context within which attention uses the kernels that it may."""
        return nullcontext() if self.attention is None else sdpa_kernel([_BACKENDS[name] for name in self.attention])

    def _records(self, technique: Finetune) -> bool:
        return self._not_recorded() is None and technique.steps * technique.accumulate >= _WORTH_RECORDING

    def _not_recorded(self) -> str | None:
        """Where passes cannot be recorded, and this is the case here; ``None`` where they can be."""
        if self.strategy.root_device.type != "cuda":
            return "on a CPU"
        if self._shards:
            return "by trainer.strategy=fsdp, whose devices wait for each other within a pass"
        return "with precision=16-mixed, whose scale of the loss changes" if self.precision == "16-mixed" else None

    def _pays_back(self, technique: Finetune) -> bool:
        """Whether compiling saves time in a stage; the same for a resumed stage as for a straight one."""
        if self.strategy.root_device.type != "cuda" or self._shards or not _has_compiler():
            return False
        models = technique.family, technique.teacher_family
        families = [family for family in models if family is not None and refusal(family) is None]
        blocks = sum(len(stack) for family in families for stack in family.blocks().values())
        return technique.steps * technique.accumulate * blocks >= _PAYS_BACK * max(1, sum(map(kinds, families)))


def _has_compiler() -> bool:
    """Whether torch can compile for a GPU: it needs Triton, and a C compiler for what starts its kernels."""
    named = os.environ.get("CC")
    found = shutil.which(named) if named else shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return found is not None and find_spec("triton") is not None
