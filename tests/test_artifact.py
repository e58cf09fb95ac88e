"""What is saved is what was made: plain transformers loads it, the next stage goes on from it, no failure harms it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from slimexp import artifact
from slimexp.loss.base import IGNORE
from slimexp.model import saving
from slimexp.model.base import Family
from slimexp.weight.attachment import INPUT, attached

Make = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
AUTO = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
TASKS = list(AUTO)


@torch.no_grad()
def logits(family: Family) -> Tensor:
    """At real tokens."""
    family.model.eval()
    batch = family.encode(ROWS)
    return family.forward(batch)[0][batch["labels"] != IGNORE]


def plain(folder: Path, task: str) -> Family:
    """What a user gets without slimexp."""
    model = AUTO[task].from_pretrained(folder, dtype=torch.float32)
    like = artifact.deployed(folder)
    return type(like)(model.eval(), AutoTokenizer.from_pretrained(folder), max_length=like.max_length)


def save(family: Family, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    artifact.save(family, folder, dtype=dtype, stages=[{"name": "dense"}])
    return folder


@pytest.fixture
def masked(tiny: Make, technique: Make, corpus: Make) -> Make:
    """Task -> a family with half of its weights masked."""

    def make(task: str) -> Family:
        stage = technique("prune", sparsity=0.5)
        stage.prepare(tiny(task), corpus(task), None)
        stage.finish()
        return stage.family

    return make


@pytest.fixture
def quantized(technique: Make, corpus: Make) -> Make:
    """Family -> the same, fake-quantized."""

    def make(family: Family, **values: Any) -> Family:
        stage = technique("quantize", **{"activation_bits": None} | values)
        stage.prepare(family, corpus(family.task), None)
        stage.finish()
        return stage.family

    return make


# --- dense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_plain_transformers_loads_the_very_model(tiny: Make, task: str, tmp_path: Path) -> None:
    family = tiny(task)
    folder = save(family, tmp_path / "artifact")
    assert torch.equal(logits(plain(folder, task)), logits(family))
    assert torch.equal(logits(artifact.deployed(folder)), logits(family))
    assert torch.equal(logits(artifact.load(folder)), logits(family))
    assert not (folder / artifact.TRAINING).exists()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_once_to_the_type_that_is_stored(
    tiny: Make, task: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    family = tiny(task)
    folder = save(family, tmp_path / "artifact", dtype)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {dtype}
    assert {p.dtype for p in family.model.parameters()} == {torch.float32}  # left as it was
    for parameter in family.model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    assert torch.equal(logits(plain(folder, task)), logits(family))


def test_the_model_is_left_as_it_was(masked: Make, tmp_path: Path) -> None:
    family = masked("causal_lm")
    before, state = logits(family), {name: t.clone() for name, t in family.model.state_dict().items()}
    save(family, tmp_path / "artifact", torch.bfloat16)
    assert torch.equal(logits(family), before)
    assert all(torch.equal(t, state[name]) for name, t in family.model.state_dict().items())


def test_generation_goes_on_as_it_was_configured(tiny: Make, masked: Make, tmp_path: Path) -> None:
    for family in (tiny("seq2seq"), masked("seq2seq")):
        family.model.generation_config.max_new_tokens = 7
        folder = save(family, tmp_path / "artifact")
        for loaded in (artifact.load(folder), artifact.deployed(folder)):
            assert loaded.model.generation_config.max_new_tokens == 7


def test_the_tokenizer_is_stored_once_and_without_indentation(tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    folder = save(family, tmp_path / "artifact")
    family.tokenizer.save_pretrained(tmp_path / "indented")
    compact, indented = ((tmp_path / name / "tokenizer.json").read_text() for name in ("artifact", "indented"))
    assert json.loads(compact) == json.loads(indented)
    assert len(compact) < 0.7 * len(indented)
    assert not {"vocab.json", "vocab.txt", "merges.txt"} & {path.name for path in folder.iterdir()}


# --- masked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_masked_entries_are_zeros_of_the_stored_weights(masked: Make, task: str, tmp_path: Path) -> None:
    family = masked(task)
    folder = save(family, tmp_path / "artifact", torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    for name, layer in family.compressible().items():
        assert torch.equal(stored[f"{name}.weight"], layer.weight.to(torch.bfloat16))
        assert (stored[f"{name}.weight"] == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    assert not any("parametrizations" in name or "mask" in name for name in stored)


@pytest.mark.parametrize("task", TASKS)
def test_masks_and_what_lies_beneath_come_back_exactly(masked: Make, task: str, tmp_path: Path) -> None:
    family = masked(task)
    folder = save(family, tmp_path / "artifact", torch.bfloat16)
    loaded = artifact.load(folder)
    assert torch.equal(logits(loaded), logits(family))
    state = loaded.model.state_dict()
    assert state.keys() == family.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in family.model.state_dict().items())
    assert [(place, type(a)) for place, a in attached(loaded.model)] == [
        (place, type(a)) for place, a in attached(family.model)
    ]
    torch.testing.assert_close(logits(plain(folder, task)), logits(family), atol=0.05, rtol=0.05)


# --- quantized -------------------------------------------------------------------------------------

SCHEMES = [
    ("causal_lm", {"bits": 8}),
    ("causal_lm", {"bits": 4, "group_size": 16}),
    ("causal_lm", {"bits": 2}),
    ("causal_lm", {"bits": 8, "activation_bits": 8}),
    ("seq2seq", {"bits": 8}),
    ("classification", {"bits": 4}),
]


@pytest.mark.parametrize(("task", "scheme"), SCHEMES, ids=lambda value: str(value))
@pytest.mark.parametrize("is_masked", [False, True])
def test_deployed_is_what_was_simulated(
    tiny: Make, masked: Make, quantized: Make, task: str, scheme: dict[str, Any], is_masked: bool, tmp_path: Path
) -> None:
    family = quantized((masked if is_masked else tiny)(task), **scheme)
    folder = save(family, tmp_path / "artifact")
    torch.testing.assert_close(logits(artifact.deployed(folder)), logits(family), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("task", "scheme"), SCHEMES, ids=lambda value: str(value))
def test_latent_weights_and_quantizers_come_back(
    masked: Make, quantized: Make, task: str, scheme: dict[str, Any], tmp_path: Path
) -> None:
    family = quantized(masked(task), **scheme)
    loaded = artifact.load(save(family, tmp_path / "artifact", torch.bfloat16))
    assert torch.equal(logits(loaded), logits(family))
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in family.model.state_dict().items())
    places = [(place, type(a), a.arguments()) for place, a in attached(loaded.model)]
    assert places == [(place, type(a), a.arguments()) for place, a in attached(family.model)]
    assert any(place.tensor == INPUT for place, _, _ in places) == ("activation_bits" in scheme)
    latent = next(p for n, p in loaded.model.named_parameters() if n.endswith("original"))
    assert len(latent.unique()) > 256  # not those of the grid


def test_a_quantized_artifact_is_smaller(tiny: Make, quantized: Make, tmp_path: Path) -> None:
    def weights(name: str, family: Family) -> int:
        return (save(family, tmp_path / name, torch.bfloat16) / "model.safetensors").stat().st_size

    sizes = [weights("dense", tiny("causal_lm"))]
    sizes += [weights(str(bits), quantized(tiny("causal_lm"), bits=bits)) for bits in (8, 4, 2)]
    assert sizes == sorted(sizes, reverse=True)


# --- the manifest ----------------------------------------------------------------------------------


def test_the_manifest_says_what_was_done_and_what_is_deployed(masked: Make, tmp_path: Path) -> None:
    folder = save(masked("causal_lm"), tmp_path / "artifact")
    manifest = artifact.read_manifest(folder)
    assert (manifest["format"], manifest["family"], manifest["max_length"]) == (2, "causal_lm", 64)
    assert manifest["stages"] == [{"name": "dense"}]
    assert {row["class"] for row in manifest["attachments"]} == {"slimexp.weight.mask.Mask"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(manifest["files"])
    assert {artifact.TRAINING, artifact.MANIFEST}.isdisjoint(manifest["files"])
    assert all((folder / name).exists() for name in manifest["files"])


def test_what_stages_reached(tiny: Make, tmp_path: Path) -> None:
    assert artifact.reached(tmp_path) == {}
    done = [
        {"name": "train", "technique": "Finetune", "coverage": {"share": 1.0}},
        {"name": "prune", "coverage": {"share": 0.9, "sparsity": 0.5}},
        {"name": "quantize", "coverage": {"share": 0.8, "bits/a.b": 4.0}},
    ]
    artifact.save(tiny("causal_lm"), tmp_path / "a", dtype=torch.float32, stages=done)
    reached = {"prune_share": 0.9, "prune_sparsity": 0.5, "quantize_share": 0.8, "bits/a.b": 4.0}
    assert artifact.reached(tmp_path / "a") == reached


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / artifact.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json' is damaged .*: copy or train the model anew"):
        artifact.read_manifest(tmp_path)


def test_a_manifest_of_a_newer_format_is_refused(tiny: Make, tmp_path: Path) -> None:
    folder = save(tiny("causal_lm"), tmp_path / "artifact")
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest | {"format": 3}))
    for read in (artifact.load, artifact.deployed, artifact.read_manifest):
        with pytest.raises(ValueError, match=r"is of format 3, this slimexp reads up to 2: update slimexp"):
            read(folder)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no slimexp artifact: it holds no manifest\.json"):
        artifact.load(tmp_path)


SAVED = """
import sys, torch
from pathlib import Path
from slimexp import artifact
from slimexp.file import integrity
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bpe
torch.manual_seed(0)
config = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 4, "num_layers": 1}
source = Scratch(config=config, tokenizer=Bpe(vocab_size=270, characters=99), max_length=16)
family = source.load(task="seq2seq", texts=lambda: ["one two", "three two one"], labels=())
for layer in family.compressible().values():
    attach(layer, "weight", Mask(shape=layer.weight.shape))
for name in "ab":  # the tables of a library in Rust differ even within a process
    artifact.save(family, Path(sys.argv[1]) / name, dtype=torch.float32, stages=[])
"""


def test_the_same_model_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Whatever order its sets and the libraries' tables have there: what is the same work must have the same key."""
    processes = [
        subprocess.Popen([sys.executable, "-c", SAVED, str(tmp_path / seed)], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in "12"
    ]
    assert [process.wait() for process in processes] == [0, 0]
    first, *others = (contents(tmp_path / seed / name) for seed in "12" for name in "ab")
    assert artifact.TRAINING in first and others == [first] * 3


# --- failures --------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


BREAKS = {
    "weights": lambda patch: patch.setattr(saving.Writer, "add", full),
    "tokenizer": lambda patch: patch.setattr(PreTrainedTokenizerBase, "save_pretrained", full),
    "training state": lambda patch: patch.setattr(saving, "save_file", full),
    "manifest": lambda patch: patch.setattr(artifact.json, "dumps", full),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", BREAKS)
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_the_old_artifact_and_nothing_else(
    tiny: Make, masked: Make, where: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifact"
    if exists:
        save(tiny("causal_lm"), folder)
    before = contents(tmp_path)
    family = masked("causal_lm")
    BREAKS[where](monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        save(family, folder)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == (["artifact"] if exists else [])
    assert len(list(attached(artifact.load(save(family, folder)).model))) > 0


def test_a_rename_that_fails_puts_the_old_artifact_back(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tiny("causal_lm"), tmp_path / "artifact")
    before, replace = contents(tmp_path), os.replace

    def fail_on_the_new_one(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(artifact.os, "replace", fail_on_the_new_one)
    with pytest.raises(OSError, match="Permission denied"):
        save(tiny("causal_lm", hidden_size=16), folder)
    assert contents(tmp_path) == before


def test_another_process_may_finish_the_same_stage_first(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifact"
    replace = os.replace

    def too_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(artifact.os, "replace", replace)
        save(tiny("causal_lm"), folder)
        replace(source, target)

    monkeypatch.setattr(artifact.os, "replace", too_late)
    save(tiny("causal_lm"), folder)
    assert torch.equal(logits(artifact.load(folder)), logits(tiny("causal_lm")))


@pytest.fixture
def dead() -> int:
    """Id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_removed_and_nothing_of_live_ones(tiny: Make, tmp_path: Path, dead: int) -> None:
    here = f".artifact.{platform.node()}"
    strange = f"{here}.99999999999999.partial"  # no process has such a number
    live = [
        strange,
        f"{here}.{os.getppid()}.partial",
        f".artifact.elsewhere.{dead}.partial",
        f".other.{platform.node()}.1.old",
    ]
    for name in [f"{here}.{dead}.partial", f"{here}.{dead}.old", f"{here}.{os.getpid()}.partial", *live]:
        (tmp_path / name / "below").mkdir(parents=True)
    folder = save(tiny("causal_lm"), tmp_path / "artifact")
    assert {path.name for path in tmp_path.iterdir()} >= {"artifact", *live}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") and path.name not in live]
    assert not (folder / "below").exists()


def test_an_artifact_that_a_killed_process_had_moved_aside_comes_back(
    tiny: Make, tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tiny("causal_lm"), tmp_path / "artifact")
    os.replace(folder, tmp_path / f".artifact.{platform.node()}.{dead}.old")
    BREAKS["weights"](monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save(tiny("causal_lm"), folder)
    monkeypatch.undo()
    assert torch.equal(logits(artifact.load(folder)), logits(tiny("causal_lm")))


@pytest.mark.parametrize(("bits", "activations"), [(8, 8), (8, None)])
def test_saving_and_loading_write_nothing_on_the_screen(
    tiny: Make, technique: Make, tmp_path: Path, bits: int, activations: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = technique("quantize", bits=bits, activation_bits=activations)
    stage.prepare(tiny("seq2seq"), None, None)
    stage.finish()
    capfd.readouterr()
    folder = save(stage.family, tmp_path / "artifact")
    artifact.deployed(folder)
    artifact.load(folder)
    assert capfd.readouterr() == ("", "")


def test_a_new_artifact_takes_the_place_of_the_old(tiny: Make, masked: Make, tmp_path: Path) -> None:
    save(masked("causal_lm"), tmp_path / "artifact")
    folder = save(tiny("causal_lm"), tmp_path / "artifact")
    assert not (folder / artifact.TRAINING).exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["artifact"]
