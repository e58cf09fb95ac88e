"""Does one revision compute what another does? The proof that a refactoring has changed nothing.

    python -m benchmarks.same_results main
    python -m benchmarks.same_results main HEAD --experiments chain_t5 qat_bert --steps 5
    python -m benchmarks.same_results main --experiments prune_t5 \\
        --base-overrides pipeline.prune.old_key=2 --head-overrides pipeline.prune.new_key=2

Every experiment on the models of the zoo is run by two revisions on the CPU: BASE from a temporary git worktree, and
HEAD from another or, where none is given, the present checkout with whatever is not committed in it. Both runs are a
few training steps with the same seed on one thread, side by side. Compared are, bit for bit:

- every row of the training curves: losses, learning rate, temperature;
- every tensor of every artifact, packed integers and their scales included, by type, shape and SHA-256;
- masks and quantizers by place, class name and arguments. The module that holds a class may be another one, so
  the bytes of the manifest are not compared;
- the other files of an artifact (configuration, tokenizer), by SHA-256;
- what was measured. Packed weights run on the kernels that were fastest at that moment; where the revisions took
  different kernels, the figures of the running model are left out, and the line says so.

Prints one line per stage, equal or its first difference. Exit status 1 if anything differs or a run fails. The eleven
experiments take 8 minutes of CPU time, on two processes at once.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
EXPERIMENTS = (  # those that run in seconds on a CPU; the others train a teacher or want a GPU
    "distill_t5",
    "prune_t5",
    "prune_bert",
    "prune_llama",
    "prune_structured_t5",
    "prune_structured_llama",
    "qat_t5",
    "qat_bert",
    "qat_llama",
    "ptq_llama",
    "chain_t5",
)
SETTINGS = ("trainer=fast", "logger=none", "measure=[size,task]", "measure.task.limit=16")
BATCH = 4  # rows
ENVIRONMENT = {  # no GPU, no network, one thread: sums have one order
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}
MANIFEST = "manifest.json"
OF_FILES = frozenset({"disk_mb", "weights_mb"})  # figures that need no kernel

Facts = dict[str, Any]


class Stage(NamedTuple):
    """What a finished stage left, by kind: the facts of a kind are named and compared one by one.

    Attributes:
        kinds: ``curve values``, ``tensors``, ``attachments``, ``files`` and ``figures``, causes before effects.
        kernel: What ran in the linear layers while figures were taken.
    """

    kinds: dict[str, Facts]
    kernel: str


class Side(NamedTuple):
    """One of the two revisions.

    Attributes:
        name: ``base`` or ``head``.
        tree: Its checkout.
        overrides: Of every run of it.
    """

    name: str
    tree: Path
    overrides: Sequence[str]


class Failure(Exception):
    """A command of a side failed; the message is its last line."""


# --- reading ---------------------------------------------------------------------------------------------------------


def read(runs: Path) -> dict[str, Stage]:
    """Name -> stage of the one run below ``runs``, in the order in which the stages finished."""
    records = map(json.loads, (runs / "records.jsonl").read_text().splitlines())
    return {record["stage"]: _stage(runs, record) for record in records}


def _stage(runs: Path, record: Mapping[str, Any]) -> Stage:
    folder = runs / record["artifact"]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    weights = [path for path in files if path.suffix == ".safetensors"]
    others = [path for path in files if path not in weights]
    curves = (runs / record["curves"]).read_text().splitlines() if record["curves"] else []
    kinds = {
        "curve values": {
            f"{name} of row {row}": value for row, line in enumerate(curves) for name, value in json.loads(line).items()
        },
        "tensors": {f"{path.name}: {name}": fact for path in weights for name, fact in tensors(path).items()},
        "attachments": _attachments(json.loads((folder / MANIFEST).read_text())),
        "files": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in others},
        "figures": dict(record["metrics"]),
    }
    return Stage(kinds, record["kernel"])


def tensors(path: Path) -> dict[str, str]:
    """Name -> type, shape and SHA-256 of every tensor in a safetensors file, of whatever type it is."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    return {
        name: f"{one['dtype']} {one['shape']} {_digest(content[begin:], *one['data_offsets'])}"
        for name, one in sorted(header.items())
    }


def _digest(data: bytes, start: int, end: int) -> str:
    return hashlib.sha256(memoryview(data)[start:end]).hexdigest()


def _attachments(manifest: Mapping[str, Any]) -> Facts:
    """Those of a manifest, in order, as several may sit on one weight."""
    return {
        f"{number}, {row['tensor']} of {row['module']}": [row["class"].rpartition(".")[2], row["arguments"]]
        for number, row in enumerate(manifest["attachments"])
    }


# --- comparing -------------------------------------------------------------------------------------------------------


def compare(base: Mapping[str, Stage], head: Mapping[str, Stage]) -> Iterator[tuple[str, str | None, str]]:
    """(stage, its first difference or ``None``, what was compared) of all stages that either side has."""
    for name in {**base, **head}:
        if name not in base or name not in head:
            yield name, f"only {'head' if name in head else 'base'} has the stage", ""
            continue
        yield name, difference(base[name], head[name]), _compared(base[name], head[name])


def difference(base: Stage, head: Stage) -> str | None:
    """The first fact that differs, in words."""
    for kind in {**base.kinds, **head.kinds}:
        was, now = _comparable(kind, base, head), _comparable(kind, head, base)
        for name in {**was, **now}:
            if name not in was or name not in now:
                return f"{kind}: only {'head' if name in now else 'base'} has '{name}'"
            if json.dumps(was[name]) != json.dumps(now[name]):  # of floats the shortest text that gives them back
                return f"{kind}: {name} is {now[name]}, was {was[name]}"
    return None


def _comparable(kind: str, stage: Stage, other: Stage) -> Facts:
    facts = stage.kinds.get(kind, {})
    if kind == "figures" and stage.kernel != other.kernel:
        return {name: value for name, value in facts.items() if name in OF_FILES}
    return facts


def _compared(base: Stage, head: Stage) -> str:
    counts = [f"{len(_comparable(kind, base, head))} {kind}" for kind in base.kinds if base.kinds[kind]]
    other = f"; head ran {head.kernel}, base {base.kernel}" if base.kernel != head.kernel else ""
    return ", ".join(counts) + other


# --- running ---------------------------------------------------------------------------------------------------------


@contextmanager
def checkout(revision: str | None) -> Iterator[Path]:
    """A worktree of ``revision`` that is gone afterwards; the present checkout for ``None``."""
    if revision is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="same-results-") as folder:
        tree = Path(folder).resolve() / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    if subprocess.run(["git", "-C", str(ROOT), *arguments], check=False).returncode:  # which says why
        sys.exit(f"git {shlex.join(arguments)} failed")


def python(side: Side, *arguments: str, folder: Path) -> str:
    """What a fresh interpreter prints that imports from the side's checkout, in a folder that holds no code.

    Raises:
        Failure: It ends with an error.
    """
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(side.tree)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failure((done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1])
    return done.stdout


def check_imports(side: Side, folder: Path) -> None:
    """Refuse to compare a revision with itself, as an installed package that goes before the checkout would have it.

    Raises:
        Failure: The package that is imported is not that of the checkout.
    """
    found = Path(python(side, "-c", "import slimexp; print(slimexp.__path__[0])", folder=folder).strip())
    if found.resolve().parent != side.tree.resolve():
        raise Failure(f"{side.name} must import slimexp from {side.tree}, got {found}: uninstall it")


def stages_of(side: Side, experiment: str, folder: Path) -> dict[str, int]:
    """Stage -> training steps of an experiment, as the revision composes it."""
    command = ["-m", "slimexp.train", f"+experiment={experiment}", *side.overrides, "--cfg", "job"]
    composed: Any = OmegaConf.create(python(side, *command, folder=folder))
    return {str(name): int(stage.steps) for name, stage in composed.pipeline.items()}


def train(side: Side, experiment: str, steps: int, folder: Path) -> dict[str, Stage] | str:
    """The stages of a run, or why it failed."""
    runs = folder / side.name
    runs.mkdir()
    try:
        training = [name for name, planned in stages_of(side, experiment, runs).items() if planned]
        short = [f"pipeline.{name}.{text}" for name in training for text in (f"steps={steps}", f"batch_size={BATCH}")]
        overrides = [*SETTINGS, *short, f"runs={runs}", *side.overrides]
        python(side, "-m", "slimexp.train", f"+experiment={experiment}", *overrides, folder=runs)
        return read(runs)
    except Failure as failure:
        return str(failure)


def same(sides: Sequence[Side], experiment: str, steps: int) -> bool:
    """Run an experiment on both sides, and print a line for each of its stages."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(sides)) as pool:
        found = list(pool.map(lambda side: train(side, experiment, steps, Path(folder)), sides))
    failed = [f"{side.name} failed: {one}" for side, one in zip(sides, found, strict=True) if isinstance(one, str)]
    for line in failed:
        print(f"| {experiment} | | {line} |", flush=True)
    base, head = found
    if isinstance(base, str) or isinstance(head, str):
        return False
    rows = list(compare(base, head))
    for stage, differs, compared in rows:
        result = f"**differs**: {differs}" if differs else f"equal: {compared}"
        print(f"| {experiment} | {stage} | {result} |", flush=True)
    return not any(differs for _, differs, _ in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="revision that is known to be right")
    parser.add_argument("head", nargs="?", help="revision that is compared with it (default: the present checkout)")
    parser.add_argument("--steps", type=int, default=3, help="of every stage that trains")
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS, help=f"(default: {' '.join(EXPERIMENTS)})")
    parser.add_argument("--overrides", nargs="+", default=[], help="of every run")
    parser.add_argument("--base-overrides", nargs="+", default=[], help="of the runs of BASE, after --overrides")
    parser.add_argument("--head-overrides", nargs="+", default=[], help="of the runs of HEAD, after --overrides")
    arguments = parser.parse_args()
    with checkout(arguments.base) as base, checkout(arguments.head) as head:
        sides = [
            Side("base", base, [*arguments.overrides, *arguments.base_overrides]),
            Side("head", head, [*arguments.overrides, *arguments.head_overrides]),
        ]
        with tempfile.TemporaryDirectory() as folder:
            try:
                for side in sides:
                    check_imports(side, Path(folder))
            except Failure as failure:
                sys.exit(str(failure))
        for side in sides:
            print(f"{side.name}: {side.tree} {shlex.join(side.overrides)}".rstrip())
        print("\n| experiment | stage | result |\n| --- | --- | --- |", flush=True)
        wrong = [name for name in arguments.experiments if not same(sides, name, arguments.steps)]
    if wrong:
        sys.exit(f"not the same: {', '.join(wrong)}")
    print(f"\nall {len(arguments.experiments)} experiments give the same results", flush=True)


if __name__ == "__main__":
    main()
