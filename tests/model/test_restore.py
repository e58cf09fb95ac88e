"""Attachments and the weights beneath them come back, or one line says what does not fit."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimexp import artifact
from slimexp.model.loading import Pretrained
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.static import Static
from slimexp.weight.attachment import INPUT, attach
from slimexp.weight.mask import Mask

Make = Callable[..., Any]
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"


@pytest.fixture
def folder(tiny: Make, tmp_path: Path) -> Path:
    """An artifact with a mask on one layer, a frozen grid over another, and a calibrated one on its input."""
    family = tiny("causal_lm")
    up, down = family.model.get_submodule(UP), family.model.get_submodule(DOWN)
    attach(up, "weight", Mask(shape=up.weight.shape))
    attach(down, "weight", grid := MinMax(bits=8, group_size=16))
    grid.freeze(down.weight)
    attach(down, INPUT, inputs := Static(bits=8))
    inputs.scale = torch.tensor([0.5])
    artifact.save(family, tmp_path / "a", dtype=torch.float32, stages=[])
    return tmp_path / "a"


def test_it_is_whole(folder: Path) -> None:
    assert len(artifact.read_manifest(folder)["attachments"]) == 3
    assert artifact.load(folder).model.get_submodule(DOWN).input_attachment.scale.item() == 0.5


def rows(folder: Path, number: int, **changes: Any) -> None:
    path = folder / artifact.MANIFEST
    content = json.loads(path.read_text())
    content["attachments"][number] |= changes
    path.write_text(json.dumps(content))


ROWS: dict[str, tuple[int, dict[str, Any], str]] = {
    "no module": (0, {"module": "model.layers.9.mlp"}, "the model has no such module"),
    "no tensor": (0, {"tensor": "wight"}, "the module has no such tensor"),
    "no bias": (0, {"tensor": "bias"}, "the module has no such tensor"),
    "a property": (0, {"module": "", "tensor": "device"}, "the module has no such tensor"),
    "a method": (0, {"tensor": "forward"}, "the module has no such tensor"),
    "shape": (0, {"arguments": {"shape": [32, 48]}}, r"it is of shape \[32, 48\]"),
    "a large shape": (0, {"arguments": {"shape": [2**24, 2**24]}}, r"it is of shape \[16777216, 16777216\]"),
    "a mask on an input": (0, {"tensor": INPUT}, "it is of shape"),
    "bits": (1, {"arguments": {"bits": 99, "group_size": 16}}, "bits must be 2 to 8, got 99"),
    "group": (1, {"arguments": {"bits": 8, "group_size": 7}}, "group_size must divide the length of a row"),
    "word": (1, {"arguments": {"bits": 8, "group_size": "row"}}, "group_size must be >= 1"),
    "a weight's on an input": (1, {"tensor": INPUT}, "it is not for inputs"),
    "an input's on a weight": (2, {"tensor": "weight"}, "static activations need calibration"),
    "twice": (2, {"module": UP, "tensor": "weight"}, "static activations need calibration"),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_does_not_fit_the_model(what: str, folder: Path) -> None:
    number, changes, why = ROWS[what]
    rows(folder, number, **changes)
    with pytest.raises(
        ValueError, match=rf"^'.*': attachments\[{number}\] of its .*{why}.*copy or train the model anew$"
    ):
        artifact.load(folder)


def test_no_class_of_others_is_built(folder: Path, tmp_path: Path) -> None:
    """Not by loading, nor by the checks that a model, a baseline and a teacher go through."""
    canary = tmp_path / "canary"
    rows(folder, 0, **{"class": "subprocess.Popen", "arguments": {"args": ["touch", str(canary)]}})
    source = Pretrained(path=str(folder), max_length=16)
    for load in (
        lambda: artifact.load(folder),
        lambda: artifact.deployed(folder),
        lambda: artifact.served(folder),
        lambda: artifact.reached(folder),
        lambda: source.history(),
    ):
        with pytest.raises(ValueError, match=r"attachments\[0\]\.class must be an attachment that slimexp ships"):
            load()
    assert not canary.exists()


def changed(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = load_file(path)
        tensor = change(state.pop(name))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file(state if tensor is None else state | {name: tensor.contiguous()}, path, metadata)

    return damage


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


LATENT = f"{DOWN}.parametrizations.weight.original"
SCALE = f"{DOWN}.parametrizations.weight.0.scale"
READ = r"is missing, damaged or of another model \(.+\)"
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, READ),
    "empty": (lambda path: path.write_bytes(b"") and None, READ),
    "cut short": (lambda path: os.truncate(path, 5000), READ),
    "a pipe": (replaced(os.mkfifo), "it is no regular file"),
    "a folder": (replaced(Path.mkdir), "it is no regular file"),
    "endless": (replaced(lambda path: path.symlink_to("/dev/zero")), "it is no regular file"),
    "a tensor less": (changed(LATENT, lambda x: None), READ),
    "a tensor more": (lambda path: save_file(load_file(path) | {"more": torch.ones(1)}, path), READ),
    "a mask of another shape": (changed(f"{UP}.parametrizations.weight.0.mask", lambda x: x[1:]), READ),
    "another shape": (changed(LATENT, lambda x: x.T), READ),
    "a number that is none": (changed(LATENT, lambda x: x.fill_(torch.nan)), "holds NaN or infinity"),
    "a scale for all": (
        changed(SCALE, lambda x: x.flatten()[:1]),
        r"'scale' of .* must be finite and of shape \[32, 3\]",
    ),
    "a flat scale": (changed(SCALE, lambda x: x.flatten()), r"of shape \[32, 3\], got \[96\]"),
    "a scale of 0": (changed(SCALE, lambda x: x.fill_(0)), "'scale' of the MinMax"),
    "a scale that is none": (changed(SCALE, lambda x: x.fill_(torch.inf)), "'scale' of the MinMax"),
    "an input's scales": (
        changed(f"{DOWN}.input_attachment.scale", lambda x: x.repeat(48)),
        r"of the Static at 'input' of .* must be finite and of shape \[1\], got \[48\]",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_weights_beneath_that_do_not_fit(what: str, folder: Path) -> None:
    damage, why = FILES[what]
    damage(folder / artifact.TRAINING)
    with pytest.raises(ValueError, match=why) as raised:
        artifact.load(folder)
    assert "\n" not in str(raised.value) and "anew" in str(raised.value)


def test_what_the_deployable_files_hold_is_not_stored_again(folder: Path) -> None:
    """A mask takes a bit for each weight; a weight beneath a quantizer has values of its own."""
    stored = load_file(folder / artifact.TRAINING)
    mask = stored[f"{UP}.parametrizations.weight.0.mask"]
    assert mask.dtype == torch.uint8 and LATENT in stored
    assert f"{UP}.parametrizations.weight.original" not in stored and "model.norm.weight" not in stored
    assert (folder / artifact.TRAINING).stat().st_size < (folder / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize("names", [["subprocess"], ["T5ForConditionalGeneration"], ["LlamaModel"], [], None])
def test_the_class_that_is_built_is_the_one_that_serves_the_task(names: list[str] | None, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": names}))
    for read in (artifact.load, artifact.served):
        with pytest.raises(ValueError, match=r"architectures of its config\.json must name LlamaForCausalLM, .*, got"):
            read(folder)
