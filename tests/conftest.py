"""What holds for every test: no network, no tracking, one thread, nothing that changes from run to run."""

import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ |= {  # before torch, transformers or wandb are imported
    "WANDB_MODE": "disabled",
    "WANDB_SILENT": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

import pytest

from slimexp.host import progress
from tests.command import Command
from tests.speed import (  # noqa: F401
    _choices_when_needed,
    _commit_looked_up_once,
    _frozen,
    _libraries_frozen,
    _merged_once,
    _parsed_once,
    counted,
)

ROOT = Path(__file__).parents[1]
LOOPBACK = ("127.", "::1", "localhost")

TINY: dict[str, dict[str, Any]] = {  # task -> config of a model that is trained in milliseconds
    "seq2seq": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2,
                "num_decoder_layers": 2, "dropout_rate": 0.0},
    "causal_lm": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
                  "tie_word_embeddings": True},
    "classification": {"model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
                       "attention_probs_dropout_prob": 0.0},
}  # fmt: skip


def _refuse_outside(host: Any) -> None:
    if isinstance(host, str) and host and not host.startswith(LOOPBACK):
        raise OSError(f"tests reach no network: refused {host}")


@pytest.fixture(scope="session")
def composed() -> Callable[..., Any]:
    """Overrides -> their config, composed once for all tests: to build from, not to change."""
    from slimexp.config.composition import compose

    return cache(lambda *overrides: compose(overrides))


@pytest.fixture(autouse=True, scope="session")
def _heed_interrupts() -> None:
    """A shell has what runs in its background ignore interrupts, and the processes that tests start inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _errors_have_an_open_stream() -> None:
    """Abseil (of lm-eval and OpenVINO) closes the stream of its log unless that is standard: the one of all tests."""
    if find_spec("absl"):
        from absl import logging as abseil

        abseil.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True, scope="session")
def _no_progress() -> None:
    """What a test prints does not depend on how busy the machine is; tests of progress have a clock of their own."""
    progress.reporter.watching = False


@pytest.fixture(autouse=True)
def _no_handlers_left() -> Iterator[None]:
    """What a command sets up to log to is closed after its test, and later tests would log to it."""
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernels are autotuned on tiny layers here, which the user's cache must not hold."""
    os.environ["SLIMEXP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Let only loopback and unix sockets connect."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def local_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_outside(address[0])
        connect(self, address)

    def local_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_outside(host)
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket, "getaddrinfo", local_lookup)
        yield


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Task (and config values) -> a family with a byte tokenizer and a model of random weights, always the same."""
    import torch

    from slimexp.model.loading import Scratch
    from slimexp.model.tokenizer import Bytes

    def build(task: str, **values: Any) -> Any:
        config = TINY[task] | values
        torch.manual_seed(0)
        length = config.pop("max_length", 64)
        source = Scratch(config=config, tokenizer=Bytes(), max_length=length)
        family = source.load(task=task, texts=lambda: [], labels=("no", "yes") if task == "classification" else ())
        family.model.eval()
        return family

    return build


@pytest.fixture(scope="session")
def tiny_unlike(tiny: Callable[..., Any]) -> Callable[..., Any]:
    """Task, and stack -> neurons (or groups of ``heads``) of its two blocks -> ``tiny`` with the first of each."""
    import torch

    from slimexp.cut.remove import head_rows, remove

    def build(task: str, heads: dict[str, list[int]] | None = None, **neurons: list[int]) -> Any:
        family = tiny(task)
        names = {module: name for name, module in family.model.named_modules()}

        def first(stacks: dict[str, list[int]]) -> dict[str, Any]:
            return {names[family.blocks()[stack][i]]: torch.arange(n) for stack, each in stacks.items()
                    for i, n in enumerate(each)}  # fmt: skip

        kept = {"ffn": first(neurons)} if neurons else {}
        kept |= head_rows(family.model.config, first(heads)) if heads else {}
        return remove(family, {stack: [0, 1] for stack in family.blocks()}, kept)

    return build


@pytest.fixture
def tiny_folder(tiny: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Task (and config values) -> a folder in the hub's format with the model of ``tiny``."""

    def save(task: str, name: str = "dense", **values: Any) -> Path:
        family = tiny(task, **values)
        family.model.save_pretrained(tmp_path / name)
        family.tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def write_table() -> Callable[[Path], Path]:
    """Folder -> a csv of 40 rows to copy there, with the columns that every task reads."""

    def write(folder: Path) -> Path:
        path = folder / "table.csv"
        words = ["one", "two words", "and three words", "or even four words"]
        rows = [(f"{words[i % 4]} {i}", f"{words[i % 4]} {i}!", ("no", "yes")[i % 2]) for i in range(40)]
        lines = [f"{source},{target},{source},{label}" for source, target, label in rows]
        path.write_text("\n".join(["source,target,text,label", *lines]) + "\n")
        return path

    return write


@pytest.fixture
def table(write_table: Callable[[Path], Path], tmp_path: Path) -> Path:
    """The table of ``write_table``, in the test's folder."""
    return write_table(tmp_path)


@pytest.fixture
def overrides(tiny_folder: Callable[..., Path], table: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Pipeline (and more overrides) -> the command line of a run that takes a second."""
    folders: dict[str, Path] = {}

    def make(pipeline: str, *more: str, task: str = "seq2seq", runs: str = "runs", **config: Any) -> list[str]:
        kind = f"{task}{config}"
        if kind not in folders:
            folders[kind] = tiny_folder(task, name=f"dense{len(folders)}", **config)
        return [
            "model=pretrained", f"model.path={folders[kind]}", "model.max_length=16",
            "data=files", f"data.path={table}", f"data.task={task}",
            f"pipeline={pipeline}", "logger=none", "trainer=fast", f"runs={tmp_path / runs}", "measure=[size,task]",
            *more,
        ]  # fmt: skip

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Module or file (and arguments, folder, environment) -> its process, started as a program."""
    started: list[Command] = []

    def run(program: str | Path, *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Command:
        output = tmp_path / f"output-{len(started)}"
        started.append(Command(program, arguments, cwd, dict(os.environ) if env is None else env, output))
        return started[-1]

    yield run
    for command in started:
        command.kill()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the technique's name at every training."""
    import pytorch_lightning as pl

    seen: list[str] = []
    fit = pl.Trainer.fit

    def counting(self: pl.Trainer, model: Any, *arguments: Any, **options: Any) -> None:
        seen.append(type(model).__name__)
        fit(self, model, *arguments, **options)

    monkeypatch.setattr(pl.Trainer, "fit", counting)
    return seen


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Graphs that the compiler is given; they run as they are."""
    import torch

    seen: list[Any] = []
    compile = torch.compile

    def keep(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=keep, **options))
    torch._dynamo.reset()
    return seen


@pytest.fixture
def corpus(table: Path) -> Callable[[str], Any]:
    """Task -> the corpus of ``table``."""
    from slimexp.config.build import build
    from slimexp.config.composition import compose

    return lambda task: build(compose(["data=files", f"data.path={table}", f"data.task={task}"]).data)


@pytest.fixture(scope="session")
def technique(composed: Callable[..., Any]) -> Callable[..., Any]:
    """Name (and values by key, or overrides) -> a technique of conf/ with two rows a batch, one-shot if not told."""
    from slimexp.config.build import build

    def make(name: str, *overrides: str, **values: Any) -> Any:
        settings = {"steps": 0, "batch_size": 2} | values
        lines = [f"pipeline.{name}.{key}={'null' if value is None else value}" for key, value in settings.items()]
        return build(composed(f"pipeline={name}", *overrides, *lines).pipeline[name])

    return make


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Any]:
    """Key (and changes) -> a record of a pruned model."""
    from slimexp.record.record import Record

    def make(key: str = "a", **changes: Any) -> Record:
        base = Record(
            time="2026-01-01T00:00:00+00:00",
            name="run",
            stage="prune",
            key=key,
            parent=None,
            technique="Prune",
            seed=0,
            overrides=["seed=0"],
            config={"seed": 0, "pipeline": {"prune": {"sparsity": 0.5}}},
            git=None,
            versions={"torch": "2"},
            hardware={"cpu": "x", "gpu": []},
            headline="cer",
            direction="min",
            metrics={"cer": 0.02, "params_live": 3},
            directions={"cer": "min"},
            baseline={"cer": 0.015},
            baseline_key="dense",
            trivial=0.077,
            seconds={"train": 1.0},
            reused=False,
            artifact="run/prune-a/artifact",
            curves=None,
            kernel="float32 matmul",
        )
        return replace(base, **changes)

    return make


@pytest.fixture(scope="session")
def likelihoods() -> Callable[..., dict[str, float]]:
    """Perplexity and tokens per byte -> what a language model's grading gives, with a standard error."""

    def figures(perplexity: float, tokens_per_byte: float = 0.3) -> dict[str, float]:
        bits = math.log2(perplexity) * tokens_per_byte
        return {"perplexity": perplexity, "perplexity_stderr": perplexity / 100, "bits_per_byte": bits}

    return figures


@pytest.fixture(scope="session")
def settled() -> Callable[[Path], Path]:
    """Folder -> the same, once the logs of all W&B runs below it are whole: W&B's own process writes on after a run."""
    from slimexp.logger import wandb_log

    def whole(run: Path) -> bool:
        return any(wandb_log.read(file).finished for file in run.glob("*.wandb"))

    def wait(folder: Path) -> Path:
        until = time.monotonic() + 20
        while not all(map(whole, folder.glob("wandb/*run-*"))):
            assert time.monotonic() < until, "W&B did not write its log to the end"
            time.sleep(0.01)
        return folder

    return wait


@pytest.fixture(scope="session")
def fit(composed: Callable[..., Any]) -> Callable[..., Any]:
    """Technique -> the trainer that fitted it, seeded, with nothing on screen."""
    import pytorch_lightning as pl

    from slimexp.config.build import build

    def run(technique: Any, *, resume: Path | None = None, **settings: Any) -> Any:
        pl.seed_everything(0, verbose=False)
        values = {"max_steps": technique.steps, "logger": False, "accumulate_grad_batches": technique.accumulate}
        trainer = build(composed("trainer=fast").trainer, **values | settings)
        trainer.fit(technique, ckpt_path=resume, weights_only=True)
        return trainer

    return run
