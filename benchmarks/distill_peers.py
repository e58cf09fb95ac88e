"""How fast does slimexp distil, and in how much memory, beside TRL and DistillKit on the same batches?

    sh benchmarks/peers/setup.sh trl distillkit     # once: an environment for each peer
    python -m benchmarks.distill_peers              # one GPU: 1B teaches 1B, 32 x 1,024 tokens a step
    python -m benchmarks.distill_peers --toy        # a moment on a CPU, to see that it runs

Student and teacher are Llama-shaped, of random weights (time and memory do not depend on what they are worth), with a
vocabulary of 128,256. All minimise the forward divergence on the same random ids, with AdamW in one kernel, float32
weights of the student, autocast to bfloat16, and the teacher in bfloat16: slimexp's Trainer and technique as a run has
them (``trainer=gpu``), TRL's GKDTrainer without generation, TRL's DistillationTrainer, which is handed the text that
its student would generate, and DistillKit with its teacher online. Each is a process of its own. Where memory runs out,
a step is computed in more and smaller batches (``x 2``): a peer's by its own accumulation, slimexp's by itself.

Tokens per second after the warm-up (slimexp has recorded its passes then), peak GB (10^9 bytes) of what is allocated,
and the loss of the first and the last step. The first is the same for all but GKDTrainer, which takes the logarithms of
the teacher's probabilities in bfloat16.
Prints Markdown, writes ``RUNS/distill_peers.json``; exit status 1 where slimexp is not ``--over-gkd`` times as fast as
GKDTrainer in ``--memory`` of its memory, and ``--over-best`` times as fast as the best.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import command
from benchmarks.prune_peers import PEERS, reason
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.model.loading import from_folder
from slimexp.model.tokenizer import Bytes
from slimexp.pipeline import machine

SHAPE = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "vocab_size": 128_256, "max_position_embeddings": 131_072,
         "tie_word_embeddings": True}  # fmt: skip
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
       "intermediate_size": 64, "vocab_size": 320, "max_position_embeddings": 64,
       "tie_word_embeddings": True}  # fmt: skip
WARMUP = 5  # steps of a peer
RECORDED = 34  # steps until slimexp has compiled its passes and recorded them
MOST = 16  # batches that a step is computed in
CONTENDERS = {  # name -> environment and trainer; slimexp is this one
    "slimexp": ("", ""),
    "TRL, GKDTrainer": ("trl", "gkd"),
    "TRL, DistillationTrainer": ("trl", "distillation"),
    "DistillKit, online": ("distillkit", "distillkit"),
}
OURS = "slimexp"


class Speed(NamedTuple):
    """What a contender reached.

    Attributes:
        tokens_s: Tokens per second.
        peak_gb: Most memory.
        accumulate: Batches that a step was computed in.
        losses: Of each step.
    """

    tokens_s: float
    peak_gb: float
    accumulate: int
    losses: list[float]


class Clock(pl.Callback):
    """Time of the steps after the warm-up, and their losses."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps
        self.warm = self.end = 0.0
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append((outputs["loss"] if isinstance(outputs, dict) else outputs).detach().clone())
        if trainer.global_step in (self.warmup, self.steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.warm, self.end = (now, now) if trainer.global_step == self.warmup else (self.warm, now)


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """slimexp's Trainer and technique on a task."""
    ids = torch.load(task["ids"], weights_only=True)
    steps, rows, length = ids.shape
    cfg = compose(
        [
            "pipeline=distill", f"trainer={task['trainer']}", f"pipeline.distill.steps={steps}",
            f"pipeline.distill.batch_size={rows}", "pipeline.distill.packing=false",
            "pipeline.distill.optimizer.lr=1e-4", f"trainer.compile={task['trainer'] == 'gpu'}",
            "~pipeline.distill.losses.ce", "pipeline.distill.losses.kl.temperature.start=1",
            "trainer.enable_progress_bar=false", *task["overrides"],
        ]
    )  # fmt: skip
    student, teacher = (from_folder(Path(task[role]), "causal_lm", length) for role in ("student", "teacher"))
    technique = build(cfg.pipeline.distill)
    technique.prepare(student, None, teacher)
    batches = [{"input_ids": each, "attention_mask": torch.ones_like(each), "labels": each.roll(-1, 1)} for each in ids]
    for batch in batches:
        batch["labels"][:, -1] = -100  # nothing follows the last token
    pin = torch.cuda.is_available()
    technique.train_dataloader = lambda: DataLoader(batches, batch_size=None, pin_memory=pin)  # type: ignore[arg-type]
    clock = Clock(min(RECORDED, steps - 3), steps)
    trainer = machine.trainer(cfg.trainer, steps=steps, accumulate=1, callbacks=[clock], loggers=(), folder=None)
    trainer.suit(technique)
    try:
        with trainer.attention_kernels():
            trainer.fit(technique)
    finally:
        technique.release()
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    parts = -(-rows // technique.rows_at_once) if technique.rows_at_once else 1
    speed = rows * length * (steps - clock.warmup) / (clock.end - clock.warm)
    losses = [float(loss) for loss in clock.losses]
    return {"tokens_s": speed, "peak_gb": peak, "losses": losses, "accumulate": parts}


def prepared(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Models and ids on the disk, the same for all."""
    shape = TOY if arguments.toy else SHAPE
    tokenizer = Bytes().build([])
    for seed, role in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)  # type: ignore[arg-type]
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
        config = folder / role / "tokenizer_config.json"
        known_to_all = {**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
        config.write_text(json.dumps(known_to_all))  # transformers 4, which DistillKit asks for, has no newer name
    size = arguments.steps, arguments.rows, arguments.length
    generator = torch.Generator().manual_seed(1)
    torch.save(torch.randint(3, shape["vocab_size"], size, generator=generator), folder / "ids.pt")
    return {
        "student": str(folder / "student"), "teacher": str(folder / "teacher"), "ids": str(folder / "ids.pt"),
        "overrides": arguments.overrides, "checkpointing": arguments.checkpointing, "peer_steps": arguments.peer_steps,
    }  # fmt: skip


def run(name: str, task: dict[str, Any], arguments: argparse.Namespace, folder: Path) -> Speed:
    """A contender in a process of its own, in as few batches a step as fit.

    Raises:
        RuntimeError: It failed; says with which line.
    """
    environment, trainer = CONTENDERS[name]
    into = folder / "result.json"
    if name == OURS:
        words: list[Any] = [sys.executable, "-m", "benchmarks.distill_peers", "--inside"]
        trainer = "fast" if arguments.toy else "gpu"
    else:
        words = [arguments.environments / environment / "bin" / "python", "-P", PEERS / "distillation.py"]
    accumulate = 1
    while True:
        own = {**task, "trainer": trainer, "accumulate": accumulate, "into": str(into)}
        done = subprocess.run(words, input=json.dumps(own), text=True, capture_output=True, env=_environment(arguments))
        if done.returncode == 0:
            return Speed(**{"accumulate": accumulate, **json.loads(into.read_text())})
        if "OutOfMemoryError" not in done.stderr or accumulate == MOST or name == OURS:
            raise RuntimeError(reason(done.stderr))
        accumulate *= 2


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if arguments.toy else {}
    return {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", **hidden}


def table(found: dict[str, Speed]) -> str:
    lines = [["", "tokens/s", "x slimexp", "GB", "x slimexp", "batches a step", "loss"], ["---", *["---:"] * 6]]
    own = found.get(OURS)
    for name, speed in found.items():
        ratios = ["", ""]
        if own is not None:
            ratios = [
                f"{speed.tokens_s / own.tokens_s:.2f}",
                f"{speed.peak_gb / own.peak_gb:.2f}" if own.peak_gb else "",
            ]
        loss = f"{speed.losses[0]:.4f} to {speed.losses[-1]:.4f}" if speed.losses else ""
        lines.append(
            [name, f"{speed.tokens_s:,.0f}", ratios[0], f"{speed.peak_gb:.1f}", ratios[1], str(speed.accumulate), loss]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def missed(found: dict[str, Speed], arguments: argparse.Namespace) -> list[str]:
    """What does not hold."""
    if OURS not in found:
        return []
    own, peers = found[OURS], {name: speed for name, speed in found.items() if name != OURS}
    faults = []
    if (plain := peers.get("TRL, GKDTrainer")) is not None:
        if own.tokens_s < arguments.over_gkd * plain.tokens_s:
            faults.append(f"{own.tokens_s / plain.tokens_s:.2f}x GKDTrainer, of at least {arguments.over_gkd:g}x")
        if own.peak_gb > arguments.memory * plain.peak_gb:
            faults.append(f"{own.peak_gb / plain.peak_gb:.2f}x its memory, of at most {arguments.memory:g}x")
    best = max((speed.tokens_s for speed in peers.values()), default=0.0)
    if own.tokens_s < arguments.over_best * best:
        faults.append(f"{own.tokens_s / best:.2f}x the best peer, of at least {arguments.over_best:g}x")
    return faults


def inside() -> None:
    """slimexp's part, in a process of its own."""
    machine.quiet()
    task = json.load(sys.stdin)
    Path(task["into"]).write_text(json.dumps(ours(task)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50, help="of slimexp")
    parser.add_argument("--peer-steps", type=int, default=16, help="of a peer, which does not change later")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--checkpointing", action="store_true", help="peers compute activations anew in backward")
    parser.add_argument("--environments", type=Path, default=PEERS / ".venv", help="what setup.sh made")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--over-gkd", type=float, default=3.0, help="least speed, as a multiple of GKDTrainer's")
    parser.add_argument("--memory", type=float, default=0.5, help="most memory, as a multiple of GKDTrainer's")
    parser.add_argument("--over-best", type=float, default=1.2, help="least speed, as a multiple of the best peer's")
    parser.add_argument("--toy", action="store_true", help="tiny models on the CPU: holds no target")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = command.parsed(parser)
    if arguments.inside:
        inside()
        return
    if arguments.toy:
        arguments.rows, arguments.length, arguments.steps = 4, 16, WARMUP + 3
    arguments.environments = arguments.environments.absolute()
    found: dict[str, Speed] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = prepared(arguments, Path(folder))
        for name in arguments.only:
            python = arguments.environments / CONTENDERS[name][0] / "bin" / "python"
            if name != OURS and not python.exists():
                print(f"{name}: no {python}: run sh benchmarks/peers/setup.sh {CONTENDERS[name][0]}", flush=True)
                continue
            try:
                found[name] = run(name, task, arguments, Path(folder))
                print(f"{name}: {found[name].tokens_s:,.0f} tokens/s, {found[name].peak_gb:.1f} GB", flush=True)
            except RuntimeError as error:
                print(f"{name}: failed: {error}", flush=True)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    path = arguments.runs / "distill_peers.json"
    path.write_text(json.dumps({name: speed._asdict() for name, speed in found.items()}, indent=2) + "\n")
    print(f"\n{table(found)}\n-> {path}")
    if not arguments.toy and (faults := missed(found, arguments)):
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
