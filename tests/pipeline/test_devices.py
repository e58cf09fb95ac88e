"""Two processes train as one does, in batches, objective, masks and grids; and go on with what one began."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimexp.config.check import check
from slimexp.config.composition import CONF_DIR, compose
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bpe, Bytes, TokenizerRecipe
from slimexp.pipeline.pipeline import Pipeline

SCRIPT = Path(__file__).with_name("together.py")
SHORT = ("steps=4", "batch_size=4", "optimizer.lr=0.001", "dropout=false")
# Name -> pipeline, settings of its stage, and components (GROUP@SLOT=OPTION) of it.
JOBS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "finetune": ("finetune", ["accumulate=2"], []),
    "magnitude": ("prune", ["every=1", "packing=false"], []),
    "minmax": ("quantize", ["bits=4"], []),
    "distill": ("distill", ["cut.ffn=32", "packing=false"], ["+loss@losses.hidden=hidden", "+cut@cut=keep"]),
    "projected": (
        "distill",
        ["cut.hidden=16", "packing=false", "losses.hidden.projection=true"],
        ["+loss@losses.hidden=hidden", "+loss@losses.relations=relations", "+cut@cut=keep"],
    ),
}
SLOW: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "movement": ("prune", ["every=1"], ["importance@importance=movement"]),
    "wanda": ("prune", ["every=1"], ["importance@importance=wanda"]),
    "sparsegpt": ("prune", ["every=2"], ["importance@importance=sparsegpt"]),
    "taylor": ("prune", ["every=1", "regrow=0.3"], ["importance@importance=taylor"]),
    "l0": ("prune", [], ["importance@importance=l0"]),
    "lsq": ("quantize", ["bits=4", "start=0.5"], ["quantizer@quantizer=lsq"]),
    "pact": ("quantize", [], ["quantizer@activation_quantizer=pact"]),
    "gptq": ("quantize", ["bits=4", "activation_bits=null"], ["+rounding@rounding=gptq"]),
    "structured": ("prune_structured", ["multiple=8", "budget.share=0.7", "min_coverage=0.01"], []),
    "vocabulary": ("prune_vocabulary", ["packing=false"], []),
}
ON_GPU = ("trainer.accelerator=gpu", "trainer.precision=32-true")
SHARDED = ("finetune", "magnitude", "minmax", "distill", "movement", "lsq", "pact", "gptq", "structured", "vocabulary")


def arguments(home: Path, name: str, runs: Path, *more: str) -> list[str]:
    pipeline, settings, components = (JOBS | SLOW)[name]
    chosen = [component.replace("@", f"@pipeline.{pipeline}.") for component in components]
    model = home / ("merged" if name == "vocabulary" else "dense")
    return [
        "name=run", "model=pretrained", f"model.path={model}", "model.max_length=16", "data=files",
        f"data.path={home / 'table.csv'}", "data.task=causal_lm", f"pipeline={pipeline}", "logger=none", "trainer=fast",
        "measure=[size]", "save_dtype=float32", *chosen,
        *(f"pipeline.{pipeline}.{value}" for value in (*SHORT, *settings)), f"runs={runs}", *more,
    ]  # fmt: skip


def alone(words: Sequence[str]) -> None:
    cfg = compose(list(words))
    check(cfg)
    Pipeline(cfg, overrides=[]).run()


@dataclass(frozen=True)
class Job:
    """A command line for ``together.py``."""

    arguments: Sequence[str]
    stop: int | None = None
    alone: bool = False
    rows: int | None = None
    recorded: bool = False


Start = Callable[..., Any]


def together(start: Start, folder: Path, jobs: Sequence[Job], backend: str = "gloo") -> list[list[dict[str, Any]]]:
    """Run command lines in two processes; returns what each process ended each with."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [str(folder / f"result-{number}") for number in range(len(jobs))]
    plan = [{**asdict(job), "result": result} for job, result in zip(jobs, results, strict=True)]
    (folder / "jobs.json").write_text(json.dumps(plan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    processes = [
        start(
            SCRIPT,
            str(folder / "jobs.json"),
            backend,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    ends = [process.end() for process in processes]
    assert [status for status, *_ in ends] == [0, 0], ends
    return [[json.loads(Path(f"{result}.{rank}").read_text()) for rank in range(2)] for result in results]


def weights(runs: Path, stage: str) -> dict[str, torch.Tensor]:
    (folder,) = (runs / "run").glob(f"{stage}-*")
    tensors = load_file(folder / "artifact" / "model.safetensors")
    training = folder / "artifact" / "training.safetensors"
    return tensors | (load_file(training) if training.exists() else {})


def curves(runs: Path, stage: str) -> list[dict[str, float]]:
    (folder,) = (runs / "run").glob(f"{stage}-*")
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def assert_equal(first: Path, second: Path, name: str) -> None:
    """Within rounding: one weight in a hundred may be on the other side of a threshold of masks or grids."""
    stage = (JOBS | SLOW)[name][0]
    for row, other in zip(curves(first, stage), curves(second, stage), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6), name
    one, two = weights(first, stage), weights(second, stage)
    assert one.keys() == two.keys(), name
    for key, tensor in one.items():
        differing = ~torch.isclose(tensor.float(), two[key].float(), rtol=1e-3, atol=2e-4)
        assert differing.float().mean() <= 0.01, (name, key, float(differing.float().mean()))


def save(folder: Path, config: dict[str, Any], tokenizer: TokenizerRecipe, task: Any) -> None:
    """A folder with a model of random weights, whose tokenizer is made of a text that is trained on nowhere."""
    torch.manual_seed(0)
    source = Scratch(config=config, tokenizer=tokenizer, max_length=16)
    family = source.load(task=task, texts=lambda: ["an unseen zebra crossing the unseen street"] * 9, labels=())
    family.model.save_pretrained(folder)
    family.tokenizer.save_pretrained(folder)


@pytest.fixture
def home(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder with a model and rows of unlike lengths, so that two devices never have as many labels each."""
    family = tiny("causal_lm")
    family.model.save_pretrained(tmp_path / "dense")
    family.tokenizer.save_pretrained(tmp_path / "dense")
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
    save(tmp_path / "merged", config, Bpe(vocab_size=300, characters=10_000), "causal_lm")  # has tokens to remove
    texts = [f"{'abcde'[: 1 + number % 5] * (1 + number % 3)} {number}" for number in range(40)]
    rows = [f"{number},{number},{text},no" for number, text in enumerate(texts)]
    (tmp_path / "table.csv").write_text("\n".join(["source,target,text,label", *rows]) + "\n")
    return tmp_path


def on_two(home: Path, name: str, runs: str, strategy: str) -> list[str]:
    return arguments(home, name, home / runs / name, "trainer.devices=2", f"trainer.strategy={strategy}")


def check_jobs(
    start: Start, home: Path, names: Sequence[str], strategy: str, *, backend: str = "gloo", more: Sequence[str] = ()
) -> None:
    jobs = [Job([*on_two(home, name, "two", strategy), *more]) for name in names]
    for name, outcomes in zip(names, together(start, home / "plan", jobs, backend), strict=True):
        assert "error" not in outcomes[0], outcomes[0]["trace"]
        assert outcomes[0] == outcomes[1]
        alone([*arguments(home, name, home / "one" / name), *more])
        assert_equal(home / "one" / name, home / "two" / name, name)


def check_parts(start: Start, home: Path, strategy: str, *, rows: int | None, more: Sequence[str] = ()) -> None:
    """Batches in parts on two devices, as whole ones on one: steps of two batches, and unknown denominators."""
    names = ["finetune", "distill"]
    jobs = [Job([*on_two(home, name, "two", strategy), *more], rows=rows) for name in names]
    for name, outcomes in zip(names, together(start, home / "plan", jobs), strict=True):
        assert "error" not in outcomes[0], outcomes[0]["trace"]
        assert outcomes[0] == outcomes[1]
        alone(arguments(home, name, home / "one" / name))
        assert_equal(home / "one" / name, home / "two" / name, name)


def check_resuming(start: Start, home: Path, name: str, strategies: Sequence[str]) -> None:
    """Trained on one, two, one and two devices in turn, as on one throughout."""
    always = ["checkpoint.every_steps=1", "checkpoint.every_seconds=0"]
    one = arguments(home, name, home / "one" / name, *always)
    jobs = []
    for strategy in strategies:
        mine, two = arguments(home, name, home / strategy / name, *always), on_two(home, name, strategy, strategy)
        jobs += [Job(mine, stop=1, alone=True), Job([*two, *always], stop=2), Job(mine, stop=3, alone=True)]
        jobs += [Job([*two, *always])]
    ends = [outcomes[0] for outcomes in together(start, home / "plan", jobs)]
    alone(one)
    for number, strategy in enumerate(strategies):
        *stopped, last = ends[4 * number : 4 * number + 4]
        assert [end["error"] for end in stopped] == ["Stop: "] * 3, [end["trace"] for end in stopped]
        assert "error" not in last, last["trace"]
        assert_equal(home / "one" / name, home / strategy / name, name)


def test_no_technique_is_left_out() -> None:
    assert {path.stem for path in (CONF_DIR / "technique").glob("*.yaml")} == {job[0] for job in (JOBS | SLOW).values()}


def test_two_train_as_one_does_and_go_on_with_what_one_began(start: Start, home: Path) -> None:
    check_jobs(start, home, list(JOBS), "ddp")


@pytest.mark.slow
def test_both_repeat_a_step_for_which_one_lacks_memory(start: Start, home: Path) -> None:
    check_parts(start, home, "ddp", rows=1)


@pytest.mark.slow
def test_passes_of_two_are_recorded_and_both_give_up_what_one_lacks_memory_for(start: Start, home: Path) -> None:
    """Recorded on both devices; and where one has no room for it, both go on without, and in parts."""
    name = "distill"
    chosen = ["steps=8", "pad_to=16"]
    more = ["~pipeline.distill.losses.hidden", *(f"pipeline.distill.{value}" for value in chosen)]
    jobs = [
        Job([*on_two(home, name, where, "ddp"), *more, "trainer.cuda_graphs=auto"], recorded=True, rows=rows)
        for where, rows in (("two", None), ("parts", 1))
    ]
    recorded, in_parts = together(start, home / "plan", jobs)
    for process in (*recorded, *in_parts):
        assert "error" not in process, process["trace"]
    assert all(process["replays"] >= 2 for process in recorded)
    assert [process["replays"] for process in in_parts] == [process["replays"] for process in recorded]  # no more
    alone(arguments(home, name, home / "one" / name, *more))
    assert_equal(home / "one" / name, home / "two" / name, name)
    assert_equal(home / "one" / name, home / "parts" / name, name)


@pytest.mark.slow
def test_shards_are_trained_in_parts(start: Start, home: Path) -> None:
    check_parts(start, home, "fsdp", rows=None, more=["trainer.rows_at_once=1"])


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "names"), [("ddp", list(SLOW)), ("fsdp", SHARDED)])
def test_every_technique_trains_on_two(start: Start, home: Path, strategy: str, names: Sequence[str]) -> None:
    check_jobs(start, home, names, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_compute_activations_anew(start: Start, home: Path, strategy: str) -> None:
    check_jobs(start, home, ["distill"], strategy, more=["trainer.activation_checkpointing=true"])


@pytest.mark.slow
def test_nobody_waits_for_gradients_of_layers_that_one_left_out(start: Start, home: Path) -> None:
    config = {"model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
              "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
              "max_position_embeddings": 64, "decoder_layerdrop": 0.5}  # fmt: skip
    save(home / "bart", config, Bytes(), "seq2seq")
    words = on_two(home, "finetune", "two", "ddp")
    more = [f"model.path={home / 'bart'}", "data.task=seq2seq", "pipeline.finetune.dropout=true"]
    (outcomes,) = together(start, home / "plan", [Job([*words, *more, "pipeline.finetune.steps=12"])])
    assert "error" not in outcomes[0], outcomes[0]["trace"]
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "movement", "lsq"])
def test_a_training_goes_on_on_another_number_of_devices(start: Start, home: Path, name: str) -> None:
    check_resuming(start, home, name, ["ddp", "fsdp"])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one_does(start: Start, home: Path, strategy: str) -> None:
    """In float32: NCCL adds up in another order."""
    more = [*ON_GPU, *(["trainer.cuda_graphs=true"] if strategy == "ddp" else [])]
    names = ["finetune", "magnitude", "minmax", "distill", "structured"]
    check_jobs(start, home, names, strategy, backend="nccl", more=more)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_command_trains_on_two_gpus(home: Path) -> None:
    command = [sys.executable, "-m", "slimexp.train", *on_two(home, "distill", "two", "fsdp"), *ON_GPU]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
    alone([*arguments(home, "distill", home / "one" / "distill"), *ON_GPU])
    assert_equal(home / "one" / "distill", home / "two" / "distill", "distill")
