"""How fast is a distillation step, against a loop of the same work that is written by hand?

    python -m benchmarks.training_speed
    python -m benchmarks.training_speed --rows 32 --model FOLDER
    python -m benchmarks.training_speed --toy

A causal language model teaches a student cut out of it, a quarter of its parameters less, by cross-entropy and forward
divergence at every token of the same random ids, in full rows. Compared are, in turns: the Trainer and technique as a
run has them (``trainer=gpu``), and two loops by hand, one eager, one with each layer and the loss compiled; both with
AdamW in one kernel, bfloat16 autocast, the teacher in bfloat16, clipped gradients, and whole logits. Where TRL is
installed, its supervised trainer steps on the same student and batches too, without a teacher, which is less work.

``--model`` names a folder of a Llama-like model; without it weights are random, in the shape of SmolLM2-135M. Prints
one JSON object per measurement: tokens per second after the warm-up, peak GiB of the device, and seconds from the
models being there to the first step being done; then the ratio to the faster loop. Exit status 1 under ``--target``.
"""

import argparse
import copy
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks import command
from slimexp.config.composition import compose
from slimexp.cut.keep import Keep
from slimexp.model.base import Batch, Family
from slimexp.model.causal_lm import CausalLm
from slimexp.model.compiled import blocks_compiled
from slimexp.model.tokenizer import Bytes
from slimexp.pipeline import machine
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach

SHAPE = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
         "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
         "tie_word_embeddings": True}  # fmt: skip
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
       "intermediate_size": 64, "vocab_size": 320, "max_position_embeddings": 64,
       "tie_word_embeddings": True}  # fmt: skip
REMOVED = 0.25
GROUP = 64  # weights that share a scale, and what the number of neurons is a multiple of
WARMUP = 10  # steps
RATE = 1e-4


class Clock:
    """Seconds to the end of the first step, and of those after the warm-up."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.began = time.perf_counter()
        self.first = self.warm = self.end = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def step(self, done: int) -> None:
        """Called after every step with the number of those done."""
        if done in (1, WARMUP, self.steps):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.first = now - self.began if done == 1 else self.first
            self.warm = now if done == WARMUP else self.warm
            self.end = now

    def result(self, tokens: int) -> dict[str, float]:
        """Figures for steps of ``tokens``."""
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        speed = tokens * (self.steps - WARMUP) / (self.end - self.warm)
        return {"tokens_s": round(speed), "peak_gib": round(peak, 2), "first_step_s": round(self.first, 2)}


class Timed(pl.Callback):
    """Tells a clock of the Trainer's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.clock.step(trainer.global_step)


def teacher_of(folder: str | None, toy: bool) -> LlamaForCausalLM:
    """The dense model in float32."""
    torch.manual_seed(0)
    if folder is not None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model
    return LlamaForCausalLM(LlamaConfig(**(TOY if toy else SHAPE)))  # type: ignore[arg-type]


def student_of(teacher: Family) -> Family:
    """The teacher with so few neurons that ``REMOVED`` of its parameters are gone."""
    config = teacher.model.config
    parameters = sum(parameter.numel() for parameter in teacher.model.parameters())
    per_neuron = 3 * config.hidden_size * config.num_hidden_layers
    multiple = GROUP if config.intermediate_size > 8 * GROUP else 8
    ffn = max(8, round((config.intermediate_size - REMOVED * parameters / per_neuron) / multiple) * multiple)
    keep = Keep(encoder_layers=None, decoder_layers=None, ffn=ffn, heads=None, attention_rank=None, ffn_rank=None,
                hidden=None, experts=None, calibration_batches=0)  # fmt: skip
    return keep.apply(teacher, [])


def random_batches(arguments: argparse.Namespace, vocabulary: int) -> list[Batch]:
    """Batches on the host, as many as steps; every label counts."""
    generator = torch.Generator().manual_seed(1)
    shape = arguments.rows, arguments.length
    batches = []
    for _ in range(arguments.steps):
        ids = torch.randint(3, min(vocabulary, 259) if arguments.toy else vocabulary, shape, generator=generator)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.roll(-1, 1)})
    return batches


def ours(student: Family, teacher: Family, batches: list[Batch], clock: Clock, arguments: argparse.Namespace) -> None:
    """The technique and the Trainer of a run."""
    steps = len(batches)
    cfg = compose(
        [
            "pipeline=distill",
            f"trainer={arguments.trainer}",
            f"pipeline.distill.steps={steps}",
            f"pipeline.distill.optimizer.lr={RATE}",
            "trainer.enable_progress_bar=false",
            f"trainer.compile={arguments.compile or not arguments.toy}",
            "pipeline.distill.packing=false",
            *arguments.overrides,
        ]
    )  # fmt: skip  (batches come made)
    from slimexp.config.build import build

    technique = build(cfg.pipeline.distill)
    technique.prepare(student, None, teacher)
    pin = clock.device.type == "cuda"
    technique.train_dataloader = lambda: DataLoader(batches, batch_size=None, pin_memory=pin)  # type: ignore[arg-type]
    trainer = machine.trainer(cfg.trainer, steps=steps, accumulate=1, callbacks=[Timed(clock)], loggers=(), folder=None)
    trainer.suit(technique)
    try:
        with trainer.attention_kernels():
            trainer.fit(technique)
    finally:
        technique.release()


def by_hand(compiled: bool) -> Callable[..., None]:
    """A loop as one would write it."""

    def run(student: Family, teacher: Family, batches: list[Batch], clock: Clock, _: argparse.Namespace) -> None:
        device = clock.device
        model = nn.Module.to(student.model, device).train()
        taught = nn.Module.to(teacher.model, device, torch.bfloat16).eval()
        loss_of = torch.compile(objective) if compiled else objective
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=device.type == "cuda")
        with blocks_compiled(student, teacher) if compiled else nullcontext():
            for step, batch in enumerate(pinned(batches, device), 1):
                ids, labels = (batch[name].to(device, non_blocking=True) for name in ("input_ids", "labels"))
                with torch.no_grad():
                    expected = taught(input_ids=ids, use_cache=False).logits
                with torch.autocast(device.type, torch.bfloat16):
                    logits = model(input_ids=ids, use_cache=False).logits
                    loss = loss_of(logits.flatten(0, 1), expected.flatten(0, 1), labels.flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                clock.step(step)

    return run


def objective(logits: Tensor, expected: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross-entropy and forward divergence, means over labels."""
    divergence = F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=-1),
        F.log_softmax(expected.float() / temperature, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
    return F.cross_entropy(logits.float(), labels) + temperature**2 * divergence


def pinned(batches: list[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield {name: tensor.pin_memory() if device.type == "cuda" else tensor for name, tensor in batch.items()}


def trl(student: Family, teacher: Family, batches: list[Batch], clock: Clock, arguments: argparse.Namespace) -> None:
    """TRL's supervised trainer on the same batches, without a teacher."""
    with tempfile.TemporaryDirectory() as folder:
        _trl_in(folder, student, batches, clock, arguments)


def _trl_in(folder: str, student: Family, batches: list[Batch], clock: Clock, arguments: argparse.Namespace) -> None:
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Timer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.step(state.global_step)

    rows = [{"input_ids": row.tolist()} for batch in batches for row in batch["input_ids"]]
    config = SFTConfig(output_dir=folder, per_device_train_batch_size=arguments.rows, max_steps=len(batches),
                       learning_rate=RATE, bf16=clock.device.type == "cuda", use_cpu=clock.device.type == "cpu",
                       optim="adamw_torch_fused", max_length=arguments.length, report_to=[], save_strategy="no",
                       logging_steps=10, gradient_checkpointing=False, disable_tqdm=True)  # fmt: skip
    from datasets import Dataset

    data = Dataset.from_list(rows)
    SFTTrainer(model=student.model, args=config, train_dataset=data, processing_class=student.tokenizer,
               callbacks=[Timer()]).train()  # fmt: skip


def contenders() -> dict[str, Callable[..., None]]:
    named: dict[str, Callable[..., None]] = {"slimexp": ours, "eager": by_hand(False), "compiled": by_hand(True)}
    return named if find_spec("trl") is None else named | {"trl": trl}


def measured(
    name: str, run: Callable[..., None], dense: LlamaForCausalLM, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One contender from models on the host to its last step."""
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.toy else "cpu")
    teacher = CausalLm(copy.deepcopy(dense), Bytes().build([]), max_length=arguments.length)
    student = student_of(teacher)
    if arguments.bits:
        for layer in student.compressible().values():
            attach(layer, "weight", MinMax(bits=arguments.bits, group_size=8 if arguments.toy else GROUP))
    batches = random_batches(arguments, dense.config.vocab_size)
    clock = Clock(device, len(batches))
    run(student, teacher, batches, clock, arguments)
    return {"name": name, **clock.result(arguments.rows * arguments.length)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a Llama-like model (default: random weights)")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2, help="turns of every contender")
    parser.add_argument("--only", nargs="+", help="contenders (default: all)")
    parser.add_argument("--compile", default=None, help="trainer.compile of ours: auto, true or false")
    parser.add_argument("--bits", type=int, default=0, help="round the student's weights, in groups of 64 (0: not)")
    parser.add_argument("--trainer", default="gpu")
    parser.add_argument("--target", type=float, default=0.0, help="least ratio to the faster loop by hand")
    parser.add_argument("--toy", action="store_true", help="a tiny model on the CPU, to see that it runs")
    arguments = command.parsed(parser)
    if arguments.toy:
        arguments.rows, arguments.length, arguments.steps = 2, 16, WARMUP + 4
        arguments.trainer = "fast"
    machine.quiet()
    dense = teacher_of(arguments.model, arguments.toy)
    best: dict[str, float] = {}
    for turn in range(arguments.rounds):
        named = {name: run for name, run in contenders().items() if name in (arguments.only or contenders())}
        if arguments.toy:
            named.pop("compiled", None)
        for name, run in list(named.items())[:: -1 if turn % 2 else 1]:
            row = measured(name, run, dense, arguments)
            print(json.dumps({"round": turn, "rows": arguments.rows, "length": arguments.length, **row}), flush=True)
            best[name] = max(best.get(name, 0.0), row["tokens_s"])
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    by_hand_best = max((best[name] for name in ("eager", "compiled") if name in best), default=0.0)
    if "slimexp" in best and by_hand_best:
        ratio = best["slimexp"] / by_hand_best
        print(json.dumps({"ratio": round(ratio, 3)}))
        if ratio < arguments.target:
            sys.exit(f"under the target of {arguments.target:g}x")


if __name__ == "__main__":
    main()
