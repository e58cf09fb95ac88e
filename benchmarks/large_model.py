"""How long does a 7B model take through the command line, and in how much memory of the host and of the GPU?

    python -m benchmarks.large_model                # one GPU; 45 GB of disk
    python -m benchmarks.large_model --toy          # a minute, anywhere: does it run?
    python -m benchmarks.large_model gptq --peer    # one arm, with llm-compressor beside it; --layers 8: of a quarter

A Llama-shaped model of random weights lies on the disk as shards of bfloat16, as a hub model does. Each arm is one
``python -m slimexp.train``: from the folder on the disk to an artifact on the disk, with everything in between. Time
and memory do not depend on what the weights are worth. Host memory is what the processes of the command cannot give
back (anonymous and shared pages; pages of mapped files are a cache); GPU memory is the driver's. Both are sampled, so
a peak of less than a tenth of a second can be missed. ``--peer`` lets llm-compressor do the same in the environment of
``benchmarks/peers`` on as many rows of the same length; on a GPU of its own, at the same time, where there are two.
Prints Markdown; exits with status 1 where a target is missed, which are those of the whole model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slimexp.model.tokenizer import Bytes

LARGE = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
TOY = {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
ROWS, LENGTH = 128, 2048
EVERY = 0.1  # seconds between two samples of memory
GIB = 2**30
PEER = Path(__file__).parent / "peers"


class Arm(NamedTuple):
    """A way to compress.

    Attributes:
        overrides: Of the command.
        peer: What llm-compressor is asked for; ``None`` where it has no such thing.
        minutes: Most that it may take.
        host: Most memory of the host, in bfloat16 weights of the model.
        gpu: Most memory of the GPU, in GiB; ``None`` for no target.
    """

    overrides: tuple[str, ...]
    peer: dict[str, Any] | None
    minutes: float
    host: float = 1.3
    gpu: float | None = 16


ARMS = {
    "gptq": Arm(
        ("pipeline=quantize", "pipeline.quantize.bits=4", "pipeline.quantize.group_size=128",
         "pipeline.quantize.activation_bits=null", "+rounding@pipeline.quantize.rounding=gptq",
         "pipeline.quantize.rounding.rows={rows}", "pipeline.quantize.steps=0"),
        {"method": "GPTQ", "bits": 4, "group": 128, "activation_bits": None},
        8,
    ),
    "wanda": Arm(
        ("pipeline=prune", "importance@pipeline.prune.importance=wanda", "pipeline.prune.importance.rows={rows}",
         "pipeline.prune.pattern.scope=row", "pipeline.prune.steps=0"),
        {"importance": "wanda", "structure": "0:0", "sparsity": 0.5},
        2,
    ),
    "removal": Arm(("pipeline=prune_structured", "pipeline.prune_structured.steps=0"), None, 5, gpu=None),
}  # fmt: skip


class Cost(NamedTuple):
    """What a command took.

    Attributes:
        seconds: From its start to its end.
        host: Peak of the host's memory, in bytes.
        gpu: Peak of the GPU's memory, in bytes; 0 without one.
    """

    seconds: float
    host: int
    gpu: int


class Memory(threading.Thread):
    """Samples the memory of a process and its children, on the host and on a GPU."""

    def __init__(self, process: int, gpu: str) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(process)
        self.host, self.gpu = 0, 0
        self._gpu = gpu
        self._ended = threading.Event()
        self._base = _gpu_bytes(gpu)

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            self.host = max(self.host, _held(self.process))
            self.gpu = max(self.gpu, _gpu_bytes(self._gpu) - self._base)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _held(process: psutil.Process) -> int:
    """Bytes of the process and its children that are no pages of files."""
    held = 0
    try:
        for one in (process, *process.children(recursive=True)):
            info = one.memory_info()
            held += info.rss - info.shared + _shared_memory(one.pid)
    except (psutil.Error, OSError):  # it has just ended
        pass
    return held


def _shared_memory(pid: int) -> int:
    """Bytes of shared pages that belong to no file, which ``shared`` counts too."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssShmem:"):
            return int(line.split()[1]) * 1024
    return 0


def _gpu_bytes(gpu: str) -> int:
    """Used on a GPU by all processes."""
    if not torch.cuda.is_available():
        return 0
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={gpu}"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) * 2**20


def make_model(folder: Path, sizes: dict[str, Any]) -> int:
    """Write the model in shards of at most 5 GB; returns the bytes of its weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**sizes))
    finally:
        torch.set_default_dtype(before)
    tokenizer = Bytes().build([])
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    for name, value in special.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def run(command: Sequence[str], log: Path, given: str | None = None, *, gpu: str) -> Cost:
    """Run a command to its end, on a GPU.

    Raises:
        SystemExit: It failed; its last lines are printed.
    """
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
        )
        memory = Memory(process.pid, gpu)
        memory.start()
        process.communicate(given)
        seconds = time.monotonic() - began
        memory.stop()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n" + "\n".join(log.read_text().splitlines()[-30:]))
    return Cost(seconds, memory.host, memory.gpu)


def own(arm: Arm, model: Path, runs: Path, rows: int, length: int) -> list[str]:
    """The command of an arm."""
    trainer = "gpu" if torch.cuda.is_available() else "cpu"
    chosen = [override.format(rows=rows) for override in arm.overrides]
    common = ["data=python_source", f"data.passage={length}", "model=pretrained", f"model.path={model}",
              f"model.max_length={length}", f"trainer={trainer}", "logger=none", "measure=size", f"runs={runs}",
              "name=large", *chosen]  # fmt: skip
    return [sys.executable, "-m", "slimexp.train", *common]


def peer(arm: Arm, model: Path, into: Path, rows: int, length: int) -> tuple[list[str], str]:
    """llm-compressor's command, and what it reads."""
    assert arm.peer is not None
    ids = torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()
    quantizes = "method" in arm.peer
    texts = [{"input_ids": row, "attention_mask": [1] * length} for row in ids] if quantizes else ids
    task = {"model": str(model), "task": "causal_lm", "rows": texts, "into": str(into), "dtype": "bfloat16", **arm.peer}
    script = PEER / ("llm_compressor_quantize.py" if quantizes else "llm_compressor.py")
    return [str(PEER / ".venv" / "llm_compressor" / "bin" / "python"), "-P", str(script)], json.dumps(task)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A folder that is gone afterwards: three artifacts of 7B do not fit beside each other."""
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", nargs="*", help=f"of {', '.join(ARMS)}; all unless named")
    parser.add_argument("--toy", action="store_true", help="a model of 0.4 M parameters")
    parser.add_argument("--peer", action="store_true", help="llm-compressor as well")
    parser.add_argument("--layers", type=int, help="blocks of the model, each as large as those of 7B")
    parser.add_argument("--folder", type=Path, help="where models are written; a temporary folder unless given")
    arguments = parser.parse_args()
    names = arguments.arm or list(ARMS)
    if unknown := set(names) - ARMS.keys():
        parser.error(f"no such arm: {min(unknown)}; there are {', '.join(ARMS)}")
    rows, length = (4, 128) if arguments.toy else (ROWS, LENGTH)
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="large-"))
    missed = []
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[: min(2, max(1, torch.cuda.device_count()))]
    try:
        sizes = (TOY if arguments.toy else LARGE) | (
            {} if arguments.layers is None else {"num_hidden_layers": arguments.layers}
        )
        weights = make_model(place / "model", sizes)
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
        print(f"{weights / 2e9:.2f}B parameters, bfloat16, {rows} rows of {length} tokens, {where}\n", flush=True)
        print("| arm | minutes | at most | host / weights | at most | GPU GiB | at most |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)

        def ours(name: str) -> Cost:
            with emptied(place / "runs") as runs:
                cost = run(own(ARMS[name], place / "model", runs, rows, length), place / f"{name}.log", gpu=gpus[0])
            print(_row(name, cost, weights, ARMS[name]), flush=True)
            return cost

        def theirs(name: str) -> None:
            with emptied(place / "peer") as into:
                command, given = peer(ARMS[name], place / "model", into / "model", rows, length)
                cost = run(command, place / f"{name}_peer.log", given, gpu=gpus[-1])
            print(_row(f"{name}, llm-compressor", cost, weights, None), flush=True)

        with ThreadPoolExecutor(max_workers=len(gpus)) as side_by_side:
            for name in names:
                cost = side_by_side.submit(ours, name)
                if arguments.peer and ARMS[name].peer is not None:
                    side_by_side.submit(theirs, name).result()
                missed += _missed(name, cost.result(), weights, ARMS[name])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if missed and not arguments.toy and arguments.layers is None:
        sys.exit("; ".join(missed))


def _row(name: str, cost: Cost, weights: int, arm: Arm | None) -> str:
    limits = ("", "", "") if arm is None else (f"{arm.minutes:g}", f"{arm.host:g}", f"{arm.gpu or ''}")
    figures = (f"{cost.seconds / 60:.2f}", f"{cost.host / weights:.2f}", f"{cost.gpu / GIB:.1f}")
    return f"| {name} | " + " | ".join(f"{a} | {b}" for a, b in zip(figures, limits, strict=True)) + " |"


def _missed(name: str, cost: Cost, weights: int, arm: Arm) -> list[str]:
    missed = []
    if cost.seconds > arm.minutes * 60:
        missed.append(f"{name} took {cost.seconds / 60:.1f} minutes")
    if cost.host > arm.host * weights:
        missed.append(f"{name} took {cost.host / weights:.2f} times the weights of the host's memory")
    if arm.gpu is not None and cost.gpu > arm.gpu * GIB:
        missed.append(f"{name} took {cost.gpu / GIB:.1f} GiB of the GPU")
    return missed


if __name__ == "__main__":
    main()
