"""The undamaged world that every case copies: models, text, finished and half-finished runs, and the commands on it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import outcome
from benchmarks.faults.child import HOME, Child, program

ROWS = 24
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
DATA = ("data=files", "data.path=table.csv", "data.task=causal_lm", "data.passage=null")
MODEL = ("model=pretrained", "model.path=model", "model.max_length=16")
RUN = ("logger=none", "trainer=fast", "trainer.log_every_n_steps=1", "measure=[size,task]")
OFTEN = ("checkpoint.every_steps=1", "checkpoint.every_seconds=0", "checkpoint.share=null")
STEPS = ("steps=4", "batch_size=4", "optimizer.lr=0.01")
SPARE = "+technique@pipeline.finetune=finetune"


def stage(name: str, *values: str) -> tuple[str, ...]:
    return tuple(f"pipeline.{name}.{value}" for value in values)


@dataclass(frozen=True)
class Command:
    """A command and how its result is read.

    Attributes:
        module: As in ``python -m``.
        arguments: What follows.
        result: Home folder and what it printed -> what must come out the same, flat.
        owned: Folder below home that it may change.
    """

    module: str
    arguments: tuple[str, ...]
    result: Callable[[Path, str], dict[str, Any]]
    owned: str

    def start(self, root: Path, *, dies_at: int | None = None) -> Child:
        return Child(program(self.module, self.arguments), root, dies_at=dies_at)

    def more(self, *arguments: str) -> "Command":
        return Command(self.module, (*self.arguments, *arguments), self.result, self.owned)


def train(runs: str, *arguments: str) -> Command:
    given = (*MODEL, *DATA, *RUN, *OFTEN, f"runs={runs}", *arguments)
    return Command("slimexp.train", given, outcome.trained(runs), runs)


def evaluate(path: str, *arguments: str, data: tuple[str, ...] = DATA) -> Command:
    given = ("model=pretrained", f"model.path={path}", "model.max_length=16", *data, "runs=out", *arguments)
    return Command("slimexp.evaluate", given, outcome.evaluated("out"), "out")


PRUNE = ("pipeline=prune", *stage("prune", *STEPS, "every=1"))
PRUNED = train("runs", *PRUNE, "name=p50")
PRUNED_MORE = train("runs", *PRUNE, "name=p90", "pipeline.prune.sparsity=0.9")
PACKED = train("runs", "pipeline=quantize", *stage("quantize", "steps=0", "batch_size=4"), "name=q8")
HALF = train("half", *PRUNE, "name=p50")
CHAIN = train("chain", *PRUNE, SPARE, *stage("finetune", *STEPS), "name=chain")
REPORT = Command("slimexp.report", ("runs",), outcome.reported("runs"), "runs")
PUBLISHED = REPORT.more("--reference", "published.csv")
SELECT = Command("slimexp.select", ("runs", "max_disk_mb=10"), outcome.printed, "runs")
CLEAN = Command("slimexp.clean", ("runs", "--unfinished", "--dominated", "--yes"), outcome.remaining("runs"), "runs")
SWEEP = Command(
    "slimexp.train",
    ("-m", *MODEL, *DATA, *RUN, "runs=swept", "name=s", "pipeline=prune", *stage("prune", "steps=2", "batch_size=4"),
     "hydra/sweeper=pareto", "hydra.sweeper.workers=1", "pipeline.prune.sparsity=0.5,0.9"),
    outcome.trained("swept"),
    "swept",
)  # fmt: skip


def make(root: Path) -> None:
    """Build the world at ``root``."""
    home = root / HOME
    shutil.rmtree(root, ignore_errors=True)
    home.mkdir(parents=True)
    (root / "cache").mkdir()
    _write_text(home)
    _write_victims(root)
    _ran(Child(lambda: _write_models(home), root))
    for command in (PRUNED, PRUNED_MORE, PACKED, CHAIN, SWEEP):
        _ran(command.start(root))
    shutil.rmtree(next(home.glob("chain/chain/finetune-*")))
    _write_half(root)
    artifacts = {"pruned": "runs/p50/prune-*", "packed": "runs/q8/quantize-*", "masked": "chain/chain/prune-*"}
    for name, pattern in artifacts.items():
        shutil.copytree(next(home.glob(pattern)) / "artifact", home / name)


def model(home: Path, stage: str, runs: str = "runs") -> Path:
    """The artifact of a stage; of several, the first."""
    return sorted(home.glob(f"{runs}/*/{stage}-*"))[0] / "artifact"


def _ran(child: Child) -> None:
    ended = child.wait(seconds=300.0, megabytes=8000.0)
    if ended.status:
        raise RuntimeError(f"the undamaged world cannot be made:\n{ended.output}")


def _write_half(root: Path) -> None:
    """A run that was killed at its third checkpoint."""
    for change in range(1, 10_000):
        child = HALF.start(root, dies_at=change * 5)
        ended = child.wait(seconds=300.0)
        if list(root.glob(f"{HOME}/half/p50/prune-*/checkpoint.ckpt")):
            return
        if ended.status >= 0:
            raise RuntimeError(f"no kill left a checkpoint:\n{ended.output}")


def _write_text(home: Path) -> None:
    words = ("one", "two words", "and three words", "or even four words")
    rows = [{"text": f"{words[i % 4]} {i}", "label": ("no", "yes")[i % 2]} for i in range(ROWS)]
    lines = [f"{row['text']},{row['label']}" for row in rows]
    (home / "table.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (home / "table.tsv").write_text("\n".join(["text,label", *lines]).replace(",", "\t") + "\n")
    (home / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "published.csv").write_text("label,disk_mb,kept\nothers,0.1,0.5\n")


def _write_victims(root: Path) -> None:
    """What is the user's own: nothing of it may be touched. Some of it looks like what slimexp makes."""
    for place in (root / "victim", root / HOME / "runs" / "mine", root / HOME / "half" / "mine"):
        (place / "artifact").mkdir(parents=True)
        for name in ("thesis.txt", "checkpoint.ckpt", "artifact/model.safetensors", "artifact/paper.txt"):
            (place / name).write_text(f"years of work: {name}")


def _write_models(home: Path) -> None:
    import pandas
    import torch

    from slimexp.model.loading import Scratch
    from slimexp.model.tokenizer import Bytes

    pandas.read_csv(home / "table.csv").to_parquet(home / "table.parquet")
    torch.manual_seed(0)
    family = Scratch(config=dict(TINY), tokenizer=Bytes(), max_length=64).load(
        task="causal_lm", texts=lambda: [], labels=()
    )
    sizes: dict[str, dict[str, Any]] = {"model": {}, "sharded": {"max_shard_size": "40KB"}}
    for name, options in sizes.items():
        family.model.save_pretrained(home / name, **options)
        family.tokenizer.save_pretrained(home / name)
