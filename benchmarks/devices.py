"""What do more devices bring: tokens per second, final loss and peak memory of one distillation on 1, 2, ... of them?

    python -m benchmarks.devices                         # SmolLM2's shape on 1 and 2 GPUs, each with the whole model
    python -m benchmarks.devices --large --devices 2     # a 7B Llama and its teacher, sharded over 2 GPUs
    python -m benchmarks.devices --large 14b --devices 8
    python -m benchmarks.devices --toy                   # two processes of this machine's CPU, in a minute

The technique, batches, trainer and strategy are those of every run; weights are random, and the same for any number of
devices. The batch is global: it is split among the devices. Rows are full, so that no time goes into padding. Reported,
as JSON: tokens per second after a warm-up, the loss of the last step, the peak of allocated memory on each GPU, and the
ratios to the first number of devices. ``--large`` makes the weights on the GPUs, shard by shard: no process ever holds
a whole model. Targets: 1.85 times the tokens per second on two GPUs; a loss that is the same within noise. Further
arguments are overrides of the run, e.g. ``trainer.strategy=fsdp``. Exit status 1 where a process fails."""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import command

SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
           "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False}  # fmt: skip
LLAMA_14B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
             "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False}  # fmt: skip
LARGE = {"7b": LLAMA_7B, "14b": LLAMA_14B}
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": False}  # fmt: skip
STD = 0.02


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", help="numbers of devices; 1 and 2, or 2 where --large")
    parser.add_argument("--rows", type=int, help="rows per batch, on all devices together")
    parser.add_argument("--length", type=int, help="tokens per row")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=20, help="steps before the clock starts")
    parser.add_argument("--large", nargs="?", const="7b", choices=LARGE, help="that Llama and its teacher, by FSDP2")
    parser.add_argument("--toy", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)  # of a process of this program
    arguments = command.parsed(parser)
    if arguments.steps <= arguments.warmup:
        parser.error(
            f"--steps must be more than --warmup, {arguments.warmup}, got {arguments.steps}: no token would count"
        )
    arguments.devices = arguments.devices or ([2] if arguments.large else [1, 2])
    arguments.rows = arguments.rows or (8 if arguments.toy else 4 * max(arguments.devices) if arguments.large else 64)
    arguments.length = arguments.length or (64 if arguments.toy else 512)
    return arguments


def shape(arguments: argparse.Namespace) -> dict[str, Any]:
    chosen = TOY if arguments.toy else LARGE[arguments.large] if arguments.large else SMOLLM2
    return {**chosen, "model_type": "llama", "max_position_embeddings": 2048}


def composed(arguments: argparse.Namespace, devices: int) -> Any:
    from slimexp.config.composition import compose

    trainer = "fast" if arguments.toy else "gpu"
    strategy = "fsdp" if arguments.large else "auto"
    return compose(
        [
            "data=files", f"data.path={arguments.text}", "data.task=causal_lm", "model=scratch",
            f"model.max_length={arguments.length}", "model.config={model_type: llama}", "pipeline=distill",
            "+model@pipeline.distill.teacher=scratch", "pipeline.distill.teacher.config={model_type: llama}",
            f"pipeline.distill.steps={arguments.steps}", f"pipeline.distill.batch_size={arguments.rows}",
            "pipeline.distill.optimizer.lr=1e-4", "pipeline.distill.packing=false", "measure=[]", "logger=none",
            f"trainer={trainer}",
            "trainer.enable_progress_bar=false", f"trainer.devices={devices}", f"trainer.strategy={strategy}",
            *arguments.overrides,
        ]
    )  # fmt: skip


def outline(arguments: argparse.Namespace, device: str, dtype: Any) -> Any:
    """A family of the shape, with random weights; on the meta device, with none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from slimexp.model.loading import family_named
    from slimexp.model.tokenizer import Bytes

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape(arguments)), dtype=dtype)
    return family_named("causal_lm")(model, Bytes().build(()), max_length=arguments.length)


def filled(model: Any, device: str) -> None:
    """Give a sharded model of the meta device random weights where they are used."""
    import torch

    model.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, STD) if parameter.ndim > 1 else parameter.fill_(1)
        for name, module in model.named_modules():
            if name.endswith("rotary_emb"):  # its buffers are computed when it is made
                fresh = type(module)(model.config)
                for buffer, value in fresh.named_buffers():
                    module.get_buffer(buffer).copy_(value)


def clock(arguments: argparse.Namespace) -> Any:
    import pytorch_lightning as pl
    import torch

    from slimexp.host import process_group

    class Clock(pl.Callback):
        """Tokens of this device and seconds after the warm-up, and the last loss."""

        tokens, seconds, loss, _began = 0, 0.0, 0.0, 0.0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            done = batch_idx + 1
            if done > arguments.warmup:
                self.tokens += batch["input_ids"].numel()
            if done in (arguments.warmup, arguments.steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                process_group.all_gather(None)
                self.seconds, self._began = time.perf_counter() - self._began, time.perf_counter()
            if done == arguments.steps:
                self.loss = float(outputs["loss"])

    return Clock()


def trained(arguments: argparse.Namespace, devices: int) -> dict[str, Any]:
    """Train in this process, one of ``devices``; returns what was measured in all of them."""
    import torch

    from slimexp.config.build import build
    from slimexp.host import process_group
    from slimexp.pipeline import machine
    from slimexp.technique.training import Execution

    cfg = composed(arguments, devices)
    machine.quiet()
    device = "cpu" if arguments.toy else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    technique = build(cfg.pipeline.distill)
    if arguments.large:
        kind = type(technique)

        class OnGpus(kind):  # type: ignore[valid-type]
            """Made shard by shard: the outlines are sharded first, and get weights then."""

            def configure_model(self) -> None:
                super().configure_model()
                for family in (self.family, self.teacher_family):
                    filled(family.model, device)

        technique.__class__ = OnGpus
    place = "meta" if arguments.large else device
    student, teacher = outline(arguments, place, torch.float32), outline(arguments, place, torch.bfloat16)
    technique.execution = Execution(pad_to=cfg.trainer.pad_to)
    technique.prepare(student, build(cfg.data), teacher)
    timer = clock(arguments)
    trainer = machine.trainer(
        cfg.trainer, steps=arguments.steps, accumulate=1, callbacks=[timer], loggers=(), folder=None
    )
    trainer.suit(technique)
    with trainer.attention_kernels():
        trainer.fit(technique)
    peak = 0 if arguments.toy else torch.cuda.max_memory_allocated()
    parts = process_group.all_gather((timer.tokens, timer.seconds, timer.loss, peak))
    return {
        "devices": devices,
        "strategy": cfg.trainer.strategy if devices > 1 else "one device",
        "rows": arguments.rows,
        "length": arguments.length,
        "tokens_per_second": sum(part[0] for part in parts) / max(part[1] for part in parts),
        "loss": parts[0][2],
        "peak_gib_per_device": [round(part[3] / 2**30, 2) for part in parts],
    }


def process(arguments: argparse.Namespace) -> None:
    """One of the processes of this program."""
    import torch

    from slimexp.host import process_group
    from slimexp.pipeline.launch import meeting

    devices = int(os.environ["WORLD_SIZE"])
    if not arguments.toy:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if devices == 1:
        result = trained(arguments, 1)
    else:
        with process_group.joined("gloo" if arguments.toy else "nccl", meeting()):
            result = trained(arguments, devices)
    if os.environ["RANK"] == "0":
        print(f"result {json.dumps(result)}", flush=True)


def measured(arguments: argparse.Namespace, devices: int, text: Path) -> dict[str, Any]:
    """Start a process per device and wait for what the first reports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices)}
    meet |= {"TORCHELASTIC_RUN_ID": "benchmark"} if devices > 1 else {}
    options = [f"--text={text}", f"--rows={arguments.rows}", f"--length={arguments.length}"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.devices", *sys.argv[1:], *options],
            env={**os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(devices)
    ]
    printed = [started.communicate()[0] for started in processes]
    if any(started.returncode for started in processes):
        sys.exit(f"{devices} devices: a process failed\n{''.join(printed)}")
    line = next(line for line in printed[0].splitlines() if line.startswith("result "))
    result: dict[str, Any] = json.loads(line.removeprefix("result "))
    return result


def written(folder: str, length: int) -> Path:
    """Text whose rows are a little longer than those of a batch, and no longer than a passage."""
    path = Path(folder) / "text.csv"
    words = ("seven", "wise", "owls", "watch", "a", "quick", "brown", "fox", "jump", "over", "lazy", "dogs")
    random = Random(0)
    rows = [" ".join(random.choices(words, k=length // 2))[: length + 8] for _ in range(512)]
    path.write_text("text\n" + "\n".join(rows) + "\n")
    return path


def compared(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    speed = {str(row["devices"]): round(row["tokens_per_second"] / first["tokens_per_second"], 3) for row in rows}
    return {"runs": list(rows), "speed_up": speed, "loss_difference": max(row["loss"] for row in rows) - first["loss"]}


def main() -> None:
    arguments = parsed()
    if arguments.text is not None:
        process(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        text = written(folder, arguments.length)
        print(json.dumps(compared([measured(arguments, count, text) for count in arguments.devices]), indent=2))


if __name__ == "__main__":
    main()
