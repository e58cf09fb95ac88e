"""What slimexp wrote when its modules lay in the package's root is read as it ever was.

Manifests, records, journals, checkpoints and W&B's logs name classes by path. ``fixtures/before_rooms`` holds some of
each, written by the commit that its README names, with the commands that wrote them.
"""

import csv
import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimexp import artifact, evaluate, report, select, train

Command = Callable[..., None]
ARCHIVE = Path(__file__).parent / "fixtures" / "before_rooms" / "before_rooms.zip"
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "front_t5.jsonl"  # records of a still older one
with zipfile.ZipFile(ARCHIVE) as _archive:
    COMMANDS = json.loads(_archive.read("commands.json"))
    RECORDS = [json.loads(line) for line in _archive.read("runs/records.jsonl").splitlines()]
    CHECKPOINT = next(name for name in _archive.namelist() if name.endswith("checkpoint.ckpt"))
STAGES = {f"{row['stage']}-{row['key']}": row for row in RECORDS}
STACKED = next(row for row in RECORDS if row["stage"] == "quantize" and row["parent"] != RECORDS[0]["key"])
MASKED = next(row for row in RECORDS if row["key"] == STACKED["parent"])
BASELINE = ("model@baseline=pretrained", "baseline.path=dense", "baseline.max_length=16")
DATA = ("data=files", "data.path=table.csv", "data.task=causal_lm", "data.passage=null")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs folder, from the folder beside it that its commands were given in."""
    shutil.unpack_archive(ARCHIVE, tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("runs")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Command:
    """``python -m slimexp.train`` with arguments."""

    def command(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        train.main(train.train)

    return command


def records(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs / "records.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_it_is_for() -> None:
    text = json.dumps(RECORDS)
    assert all(
        f"slimexp.{name}" in text for name in ("target.", "tracker.", "model.surgery.", "allocation.Sensitivity")
    )
    with zipfile.ZipFile(ARCHIVE) as archive:
        manifests = [json.loads(archive.read(f"runs/{row['artifact']}/manifest.json")) for row in RECORDS]
        assert sum(name.endswith(".wandb") for name in archive.namelist()) == 1
    classes = {row["class"] for manifest in manifests for row in manifest["attachments"]}
    old = ("importance.mask.Mask", "quantizer.lsq.Lsq", "quantizer.static.Static")  # whole, a search would rename them
    assert {f"slimexp.{name}" for name in old} <= classes


# --- artifacts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_an_artifact_is_loaded_as_it_was_saved(stage: str, runs: Path) -> None:
    folder = runs / STAGES[stage]["artifact"]
    attachments = json.loads((folder / "manifest.json").read_text())["attachments"]
    model = artifact.load(folder).model
    stored = load_file(folder / ("training.safetensors" if attachments else "model.safetensors"))
    state = model.state_dict()
    assert all(torch.equal(state[name].to(tensor.dtype), tensor) for name, tensor in stored.items())
    assert len(state.keys() - stored.keys()) == 1  # the embedding and the head are one tensor
    expected = Counter(row["class"].rpartition(".")[2] for row in attachments)
    found = Counter(type(module).__name__ for module in model.modules())
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("stage", STAGES)
def test_an_artifact_is_evaluated_as_it_was(stage: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs / STAGES[stage]["artifact"]
    model = ("model=pretrained", f"model.path={folder}", "model.max_length=16")
    monkeypatch.setattr("sys.argv", ["evaluate", *model, *BASELINE, *DATA, "runs=evaluated"])
    evaluate.main(evaluate.evaluate, "evaluate")
    (row,) = records(Path("evaluated"))
    was = STAGES[stage]["metrics"]
    new = {name for name in row["metrics"] if name.endswith(("_difference", "_difference_low", "_difference_high"))}
    assert row["metrics"].keys() - new == was.keys()
    same = [name for name in was if name.startswith("params_") or name.endswith(("_share", "_bits", "_sparsity"))]
    assert {name: row["metrics"][name] for name in same} == {name: was[name] for name in same}
    assert row["metrics"]["bits_per_byte"] == pytest.approx(was["bits_per_byte"], rel=0.01)  # kernels may differ


@pytest.mark.parametrize("made", [MASKED, STACKED], ids=["masked", "masked, then quantized"])
def test_training_goes_on_from_an_artifact(made: dict[str, Any], runs: Path, run: Command) -> None:
    from slimexp.weight.mask import unpacked_bits

    before = load_file(runs / made["artifact"] / "training.safetensors")
    model = ("model=pretrained", f"model.path={runs / made['artifact']}", "model.max_length=16")
    training = ("pipeline=finetune", "pipeline.finetune.steps=1", "pipeline.finetune.batch_size=4")
    run(*model, *BASELINE, *DATA, *training, "logger=none", "trainer=fast", "name=on", "runs=further")
    row = records(Path("further"))[-1]
    after = load_file(Path("further", row["artifact"]) / "training.safetensors")
    masks = [name for name in before if name.endswith(".mask")]
    assert row["stage"] == "finetune" and after.keys() == before.keys()
    bits = {name: unpacked_bits(after[name], before[name].shape) for name in masks}  # before, a byte for each weight
    assert masks and all(torch.equal(before[name], bits[name]) for name in masks)
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - masks)
    scales = [name for name in before if name.endswith(".scale")]
    assert bool(scales) == (made is STACKED)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", COMMANDS["commands"])
def test_a_command_given_again_keeps_what_is_there(what: str, runs: Path, run: Command) -> None:
    """Whether its stages are found finished or, by other code, are other work."""
    before = contents(runs / "old")
    run(*COMMANDS["commands"][what])
    after = contents(runs / "old")
    assert {path: after[path] for path in before} == before
    assert records(runs)[: len(RECORDS)] == RECORDS


def test_an_unfinished_stage_is_finished_and_its_checkpoint_fits(
    runs: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(CHECKPOINT, weights_only=True)
    run(*COMMANDS["unfinished"])
    row = records(runs)[-1]
    assert row["config"]["pipeline"]["prune"]["importance"]["_target_"].endswith(".L0")
    # Code that has changed since makes a stage of another key, in which the checkpoint would never be looked at.
    content["callbacks"]["Checkpoint"]["key"] = row["key"]
    folder = (runs / row["artifact"]).parent
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save(content, folder / "checkpoint.ckpt")
    capsys.readouterr()
    run(*COMMANDS["unfinished"])
    output = capsys.readouterr().out
    assert re.search(rf"^prune: resuming at step \d+ of \d+, from {folder}/checkpoint.ckpt$", output, re.M)
    assert "damaged" not in output
    assert records(runs)[-1]["key"] == row["key"] and (runs / row["artifact"]).is_dir()


def test_a_sweep_knows_its_trials(runs: Path, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    before = (runs / "old" / "sweep" / "journal.jsonl").read_bytes()
    before_auto = ("optimizer.lr=0.001", "lr_scheduler.num_warmup_steps=0", "packing=false")
    settings = [*(f"pipeline.quantize.{setting}" for setting in before_auto), "measure.task.limit=null"]
    run(*COMMANDS["sweep"], *settings)
    output = capsys.readouterr()
    assert "after 2 trials:" in output.out and "[1/" not in output.out and output.err == ""
    assert (runs / "old" / "sweep" / "journal.jsonl").read_bytes() == before


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_are_reported(runs: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert report.main([str(runs)]) == 0
    assert not [str(one.message) for one in recwarn if "skipped" in str(one.message)]
    with (runs / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(row["bits_per_byte"]) for row in rows) == sorted(
        row["metrics"]["bits_per_byte"] for row in RECORDS
    )
    assert Counter(row["chain"].split(" ")[-1] for row in rows) == Counter(row["stage"] for row in RECORDS)


def test_what_is_in_wandb_is_found_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(runs), "--wandb"])
    assert "1 of 1 records are whole in 1 runs" in capsys.readouterr().err


@pytest.mark.parametrize("older", [False, True], ids=["runs", "notebook"])
def test_a_model_is_selected(older: bool, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert select.main([str(NOTEBOOK if older else runs), "max_size_mb=8"]) == 0
    output = capsys.readouterr()
    assert output.err == "" and ("front_t5/" if older else f"{runs}/old/") in output.out
