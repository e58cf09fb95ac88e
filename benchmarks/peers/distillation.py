"""Trainers of TRL and DistillKit that learn from a teacher.

``benchmarks.distill_peers`` runs this in their environments. It reads a task in JSON: folders of ``student`` and
``teacher``, a file of token ids [steps, rows, length] (``ids``), the ``trainer`` (a name in ``TRAINERS``),
``accumulate`` (batches that a step is computed in), ``checkpointing``, ``peer_steps`` (so many steps of
these are taken), and where the result goes (``into``). All trainers minimise the forward divergence at temperature 1
with AdamW in one kernel, float32 weights of the student, autocast to bfloat16, and a teacher in bfloat16; everything
else is their own default.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

WARMUP = 5  # steps


class Clock(TrainerCallback):
    """Tokens per second after the warm-up, and peak memory of the device.

    Args:
        steps: Number of steps.
        tokens: Of a step.
    """

    def __init__(self, steps: int, tokens: int) -> None:
        self.steps, self.tokens = steps, tokens
        self.warm = self.end = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (WARMUP, self.steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.warm, self.end = (now, now) if state.global_step == WARMUP else (self.warm, now)

    def result(self) -> dict[str, float]:
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        return {"tokens_s": self.tokens * (self.steps - WARMUP) / (self.end - self.warm), "peak_gb": peak}


def settings(task: dict[str, Any], ids: Tensor, folder: str) -> dict[str, Any]:
    """Arguments that all trainers take."""
    on_gpu = torch.cuda.is_available()
    steps, rows, _ = ids.shape
    return {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": rows // task["accumulate"],
        "gradient_accumulation_steps": task["accumulate"], "learning_rate": 1e-4, "bf16": on_gpu, "use_cpu": not on_gpu,
        "optim": "adamw_torch_fused", "gradient_checkpointing": task["checkpointing"], "report_to": [],
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": 0, "dataloader_num_workers": 0,
    }  # fmt: skip


def stacked(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of full rows."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    ones, labels = torch.ones_like(ids), ids.clone()
    labels[:, 0] = -100  # which nothing predicts, but a mean would count
    return {
        "input_ids": ids, "attention_mask": ones, "labels": labels, "prompts": ids[:, :1],
        "prompt_attention_mask": ones[:, :1],
    }  # fmt: skip


def models(task: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Student, teacher and tokenizer."""
    student = AutoModelForCausalLM.from_pretrained(task["student"], dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(task["teacher"], dtype=torch.bfloat16)
    return student, teacher.eval(), AutoTokenizer.from_pretrained(task["student"])


def gkd(task: dict[str, Any], ids: Tensor, folder: str, clock: Clock) -> Any:
    """TRL's GKD without generation, on whole logits."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class InOrder(GKDTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    student, teacher, tokenizer = models(task)
    config = GKDConfig(
        **settings(task, ids, folder), lmbda=0.0, beta=0.0, temperature=1.0, max_length=ids.shape[-1]
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": row.tolist()} for row in ids.flatten(0, 1)])
    return InOrder(
        model=student, teacher_model=teacher, args=config, train_dataset=data, processing_class=tokenizer,
        data_collator=stacked, callbacks=[clock],
    )  # fmt: skip


def distillation(task: dict[str, Any], ids: Tensor, folder: str, clock: Clock) -> Any:
    """TRL's DistillationTrainer, given the completions that its student would generate."""
    from trl import DistillationConfig, DistillationTrainer

    rows = ids.flatten(0, 1).tolist()

    class OnGivenText(DistillationTrainer):
        def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
            chosen = [rows[int(prompt)] for prompt in prompts]
            return [row[:1] for row in chosen], [row[1:] for row in chosen], None, None, []

    student, teacher, tokenizer = models(task)
    config = DistillationConfig(
        **settings(task, ids, folder), beta=0.0, temperature=1.0, max_completion_length=ids.shape[-1] - 1,
        shuffle_dataset=False,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": str(number)} for number in range(len(rows))])
    return OnGivenText(
        model=student, teacher_model=teacher, args=config, train_dataset=data, processing_class=tokenizer,
        callbacks=[clock],
    )  # fmt: skip


def distillkit(task: dict[str, Any], ids: Tensor, folder: str, clock: Clock) -> Any:
    """DistillKit's trainer with its teacher online."""
    import trl
    from distillkit.configuration import DistillationRunConfig
    from distillkit.signals import OnlineSignalSource
    from distillkit.trainer import DistillationTrainer

    class InOrder(DistillationTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    student, teacher, _ = models(task)
    vocabulary = student.config.vocab_size
    config = DistillationRunConfig.model_validate(
        {
            "model": task["student"], "teacher": {"kind": "hf", "path": task["teacher"]}, "output_path": folder,
            "sequence_length": ids.shape[-1], "dataset": {"train_dataset": {"disk_path": folder}, "prepacked": True},
            "loss_functions": [{"function": "kl", "weight": 1.0, "temperature": 1.0}],
        }
    )  # fmt: skip
    arguments = trl.SFTConfig(
        **settings(task, ids, folder), max_length=ids.shape[-1], dataset_kwargs={"skip_prepare_dataset": True}
    )
    data = Dataset.from_list([{"input_ids": row.tolist()} for row in ids.flatten(0, 1)])

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = stacked(rows)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    return InOrder(
        model=student, config=config, signal_source=OnlineSignalSource(teacher, vocab_size=vocabulary),
        true_vocab_size=vocabulary, args=arguments, train_dataset=data, data_collator=collate, processing_class=None,
        callbacks=[clock],
    )  # fmt: skip


TRAINERS: dict[str, Callable[..., Any]] = {"gkd": gkd, "distillation": distillation, "distillkit": distillkit}


def main() -> None:
    task = json.load(sys.stdin)
    ids = torch.load(task["ids"], weights_only=True)[: task["peer_steps"]]
    steps, rows, length = ids.shape
    clock = Clock(steps, rows * length)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TRAINERS[task["trainer"]](task, ids, folder, clock)
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    Path(task["into"]).write_text(json.dumps({**clock.result(), "losses": losses}))


if __name__ == "__main__":
    main()
