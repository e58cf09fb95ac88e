"""How much memory and disk does each way to compress a model take, as a multiple of its weights in bfloat16?

    python -m benchmarks.memory --trainer=gpu        # a 7B Llama shape, its stages on one GPU
    python -m benchmarks.memory --hidden=1024        # a smaller one on the CPU
    python -m benchmarks.memory --toy                # seconds: does it run?

A Llama of random weights is written in shards, as a hub has it, and every case is a process of its own that runs
``slimexp.train`` or ``slimexp.evaluate`` on it. Further ``key=value`` overrides go to every case.

Peaks are above what a process takes that has only imported the libraries. ``anonymous`` is what the machine must have;
``resident`` counts pages of mapped files too, which the system drops when memory is short.
"""

import argparse
import json
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SHAPES = {"hidden": 4096, "layers": 32, "vocab": 32_000}
TOY = {"hidden": 256, "layers": 2, "vocab": 8192}
_PERIOD = 0.005  # seconds between two samples

CASES: dict[str, tuple[str, ...]] = {
    "evaluate": ("slimexp.evaluate",),
    "mask": ("slimexp.train", "pipeline=prune", "pipeline.prune.steps=0"),
    "wanda": (
        "slimexp.train", "pipeline=prune", "pipeline.prune.steps=0", "importance@pipeline.prune.importance=wanda",
        "pipeline.prune.pattern.scope=row", "pipeline.prune.importance.rows={rows}",
    ),
    "int8": ("slimexp.train", "pipeline=quantize", "pipeline.quantize.steps=0", "pipeline.quantize.bits=8"),
    "gptq": (
        "slimexp.train", "pipeline=quantize", "pipeline.quantize.steps=0", "pipeline.quantize.bits=4",
        "pipeline.quantize.activation_bits=null",
        "pipeline.quantize.group_size={group}", "+rounding@pipeline.quantize.rounding=gptq",
        "pipeline.quantize.rounding.rows={rows}",
    ),
    "removal": (
        "slimexp.train", "pipeline=prune_structured", "pipeline.prune_structured.steps=0",
        "pipeline.prune_structured.rows={few}",
    ),
    "distil": (
        "slimexp.train", "pipeline=distill", "pipeline.distill.steps=2", "pipeline.distill.batch_size=2",
        "+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.decoder_layers={half}",
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--case"]:
        return _case(*arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SHAPES.items():
        parser.add_argument(f"--{name}", type=int, help=f"of the model (default: {value})")
    parser.add_argument("--toy", action="store_true", help="a model of a few thousand weights")
    parser.add_argument("--trainer", default="cpu", help="member of conf/trainer (default: cpu)")
    parser.add_argument("--rows", type=int, default=16, help="rows of training text to calibrate on")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--cases", default=",".join(CASES), help="which, separated by commas")
    parser.add_argument("--folder", type=Path, help="where model and runs go, and stay (default: a temporary one)")
    options, overrides = parser.parse_known_args(arguments)
    shape = {name: getattr(options, name) or (TOY if options.toy else SHAPES)[name] for name in SHAPES}
    with _folder(options.folder) as folder:
        weights = _write(folder, **shape)
        print(f"weights in bfloat16: {weights / 1e9:.3f} GB, {options.trainer}\n")
        print("| case | s | anonymous | resident | GPU | disk | training state |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        failed = 0
        for name in options.cases.split(","):
            failed += not _run(name, folder, weights, options, shape, overrides)
    return int(failed > 0)


def _run(
    name: str, folder: Path, weights: int, options: argparse.Namespace, shape: dict[str, int], overrides: list[str]
) -> bool:
    group = 32 if shape["hidden"] % 128 else 128
    module, *settings = CASES[name]
    filled = [
        text.format(rows=options.rows, few=min(options.rows, 8), group=group, half=list(range(0, shape["layers"], 2)))
        for text in settings
    ]
    runs = folder / "runs" / name
    shutil.rmtree(runs, ignore_errors=True)
    common = [
        "model=pretrained", f"model.path={folder / 'model'}", f"model.max_length={options.length}", "data=files",
        f"data.path={folder / 'text.txt'}", "data.task=causal_lm", "measure=[size]", f"runs={runs}", f"name={name}",
    ]  # fmt: skip
    device = "cuda" if options.trainer.startswith("gpu") else "cpu"
    if module == "slimexp.evaluate":
        common += [f"device={device}"]
    else:
        common += [f"trainer={options.trainer}", "logger=none", "trainer.enable_progress_bar=false"]
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.memory", "--case", module, *common, *filled, *overrides]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if process.returncode:
        print(f"| {name} | failed: {' '.join((process.stderr or process.stdout).strip().splitlines()[-2:])} |")
        return False
    peaks = json.loads(process.stdout.splitlines()[-1])
    files = [path for path in runs.rglob("*") if path.is_file()] if runs.exists() else []
    disk = sum(path.stat().st_size for path in files if path.stat().st_nlink == 1)
    state = sum(path.stat().st_size for path in files if path.name.startswith("training"))
    figures = [peaks["anonymous"], peaks["resident"], peaks["gpu"], disk, state]
    shown = " | ".join(f"{size / weights:.2f}x" for size in figures)
    print(f"| {name} | {seconds:.0f} | {shown} |", flush=True)
    return True


def _case(module: str, *overrides: str) -> int:
    """Run a program of slimexp in this process; prints its peaks, in bytes, as the last line."""
    import pytorch_lightning  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    before, peak = _resident(), dict(_resident())
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_PERIOD):
            for kind, value in _resident().items():
                peak[kind] = max(peak[kind], value)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    sys.argv = [module, *overrides]
    status = 0
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 0
    done.set()
    thread.join()
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(json.dumps({kind: peak[kind] - before[kind] for kind in peak} | {"gpu": gpu}))
    return status


def _resident() -> dict[str, int]:
    """Bytes of this process in memory: all of them, and those that are of no file."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    size = {kind: int(lines[name].split()[0]) * 1024 for kind, name in
            {"resident": "VmRSS", "anonymous": "RssAnon"}.items()}  # fmt: skip
    return size


def _write(folder: Path, *, hidden: int, layers: int, vocab: int) -> int:
    """Write the model, unless it is there, and a text; returns the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from slimexp.model.place import ZOO

    words = [
        f"{a} {b} of {c}" for a in ("one", "two", "three") for b in ("green", "red") for c in ("mice", "men", "cats")
    ]
    (folder / "text.txt").write_text("\n\n".join(" ".join(words[i % 7 :] * 20) for i in range(400)))
    model_folder = folder / "model"
    heads = max(hidden // 128, 2)
    if not (model_folder / "config.json").exists():
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=-(-hidden * 43 // 16 // 128) * 128, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocab, max_position_embeddings=4096,
            pad_token_id=0, eos_token_id=1, bos_token_id=2,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model = model.bfloat16().to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.fill_(1.0) if parameter.ndim == 1 else parameter.data.normal_(std=0.02)
        model.save_pretrained(model_folder, max_shard_size="2GB")
        for path in (ZOO / "llama_python_source").glob("tokenizer*"):
            shutil.copy(path, model_folder)
    return sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))


@contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


if __name__ == "__main__":
    sys.exit(main())
