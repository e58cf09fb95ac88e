"""A compressed model as a folder: what plain transformers loads, and what the next stage needs to go on.

``config.json``, ``model.safetensors`` and the tokenizer are the deployable model. ``manifest.json``
says what was done to it; ``training.safetensors`` is there only when masks or fake-quantizers sit on
its weights, and holds the weights beneath them. The manifest says the size and digest of each file. What training goes
on from may be dropped (``drop_training``); the model stays whole.
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from slimexp.file import integrity
from slimexp.host.progress import working
from slimexp.model import serving
from slimexp.model.base import Family
from slimexp.model.cache import cache_bits, round_cache
from slimexp.model.empty import without_values
from slimexp.model.loading import bare, family_named, from_folder
from slimexp.model.reading import reach, tokenizer_of
from slimexp.model.restore import restore, training_type
from slimexp.model.saving import save_training, save_weights
from slimexp.model.tokenizer import save_tokenizer
from slimexp.record.figures import OF_LAYER
from slimexp.serialization import manifest
from slimexp.serialization.manifest import FORMAT
from slimexp.weight.attachment import attached

MANIFEST = manifest.NAME
TRAINING = manifest.TRAINING


def save(
    family: Family,
    folder: Path,
    *,
    dtype: torch.dtype,
    stages: Sequence[Mapping[str, Any]],
    key: str | None = None,
    device: torch.device | None = None,
) -> None:
    """Write the model as an artifact; one already at ``folder`` survives until the new one is whole.

    Args:
        family: The model with its attachments; it stays as it is.
        folder: Folder of the artifact; it need not exist.
        dtype: Type of the stored floating-point weights.
        stages: The stages that made the model, oldest first, as the manifest lists them.
        key: Key of the stage that the artifact belongs to; ``None`` where it belongs to none.
        device: Where quantized weights are packed; ``None`` for where the model is.

    Raises:
        OSError: The disk is full or the folder not writable; nothing at ``folder`` has changed.
    """
    with working("saving the model"), _aside(folder) as partial:
        model = family.model
        same = save_weights(model, partial, dtype, device=device)
        save_tokenizer(family.tokenizer, partial)
        deployable = sorted(path.name for path in partial.iterdir())
        attachments = [
            {
                "module": place.module,
                "tensor": place.tensor,
                "class": f"{type(attachment).__module__}.{type(attachment).__qualname__}",
                "arguments": attachment.arguments(),
            }
            for place, attachment in attached(model)
        ]
        if attachments:
            save_training(model, partial / TRAINING, same)
        content = {
            "format": FORMAT,
            "family": family.task,
            "max_length": family.max_length,
            "stages": list(stages),
            "attachments": attachments,
            "cache_bits": cache_bits(model.config),
            "files": deployable,
            "key": key,
            "digests": integrity.digests(partial),
        }
        (partial / MANIFEST).write_text(json.dumps(integrity.sealed(content), indent=2) + "\n")


def share(other: Path, folder: Path) -> bool:
    """Give the files of an artifact a second name in ``folder``; they take no further room, and go with the last name.

    Returns:
        Whether it was done: not every file system has hard links, and some only within a part of it.
    """
    try:
        with _aside(folder) as partial:
            for path in other.rglob("*"):
                place = partial / path.relative_to(other)
                place.mkdir(parents=True) if path.is_dir() else os.link(path, place)
    except OSError:
        return False
    return True


def drop_training(folder: Path) -> int:
    """Remove what training goes on from, if there is any; what others see of the model stays as it is.

    Returns:
        Bytes that were freed: none where another artifact shares the file.
    """
    path = folder / TRAINING
    if not os.path.lexists(path):
        return 0
    status = path.stat()
    integrity.write(folder / manifest.DROPPED, "made anew where a later stage goes on from this model\n")
    path.unlink()
    return status.st_size if status.st_nlink == 1 else 0


def load(folder: Path, *, keep_type: bool = False) -> Family:
    """The model as training left it, attachments in place, so that a further stage goes on from there.

    Args:
        folder: The artifact.
        keep_type: Whether weights of 16 bits stay in that type (and are mapped from their file until they change);
            otherwise all are float32.

    Raises:
        ValueError: What training goes on from was dropped.
    """
    content = read_manifest(folder)
    if not manifest.goes_on(folder):
        raise ValueError(
            f"what training goes on from was dropped from '{folder}' (keep_training_state=false), which can be "
            "measured, deployed and a teacher: repeat the command that made it with resume=false "
            "keep_training_state=true"
        )
    if not content["attachments"]:
        return deployed(folder, keep_type=keep_type)
    make, config = bare(folder, content["family"], content["max_length"])
    model = without_values(make, config, dtype=training_type(folder / TRAINING))
    with working(f"loading {folder}"):
        restore(model, content["attachments"], folder / TRAINING)
    if not keep_type:
        model.float()
    round_cache(model, cache_bits(model.config))
    if model.can_generate():
        model.generation_config = reach(GenerationConfig, folder)
    return family_named(content["family"])(model.eval(), tokenizer_of(folder), max_length=content["max_length"])


def deployed(folder: Path, *, keep_type: bool = False) -> Family:
    """The model as a user gets it: by plain transformers, from the deployable files; ``keep_type`` as in ``load``."""
    content = read_manifest(folder)
    dtype = serving.stored_type(folder) if keep_type and not content["attachments"] else torch.float32
    return from_folder(folder, content["family"], content["max_length"], dtype=dtype)


def served(folder: str | Path, device: str | torch.device = "cpu", *, dtype: torch.dtype = torch.float32) -> Family:
    """The model as it is measured: what is packed on the fastest kernels of ``device``, see ``model.serving``."""
    folder = Path(folder)
    content = read_manifest(folder)
    with working(f"loading {folder}"):
        return serving.served(folder, content["family"], content["max_length"], device=device, dtype=dtype)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of the artifact in ``folder``: what was done to the model.

    Raises:
        ValueError: There is no manifest, it is damaged, or it is of a newer format (see ``manifest.read``).
    """
    return manifest.read(folder)


def reached(folder: Path) -> dict[str, float]:
    """The coverage that the compressing stages of an artifact report; empty for a folder that is no artifact.

    Returns:
        ``<stage>_<figure>`` of the model (``quantize_share``: how much was quantized), ``<figure>/<layer>`` of layers.
    """
    if not manifest.is_in(folder):
        return {}
    stages = manifest.compressing(read_manifest(folder)["stages"])
    done = [(stage["name"], *item) for stage in stages for item in stage.get("coverage", {}).items()]
    return {name if OF_LAYER in name else f"{stage}_{name}": float(value) for stage, name, value in done}


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its name when the block ends without an error, and is removed otherwise."""
    _clear(folder)
    beside = f".{folder.name}.{platform.node()}.{os.getpid()}"
    partial, old = folder.with_name(f"{beside}.partial"), folder.with_name(f"{beside}.old")
    partial.mkdir(parents=True)
    try:
        yield partial
        if os.path.lexists(folder):
            os.replace(folder, old)
        try:
            integrity.publish(partial, folder)
        except OSError:
            if not (folder / MANIFEST).exists():  # else another process has just finished the same stage
                raise
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for leftover in (partial, old):
            with suppress(OSError):
                integrity.remove(leftover)


def _clear(folder: Path) -> None:
    """Remove what killed processes of this machine left beside ``folder``; an artifact among it is put back."""
    for path in folder.parent.glob(f".{folder.name}.{platform.node()}.*"):
        pid, kind = path.name.split(".")[-2:]
        if not integrity.PID.fullmatch(pid) or (int(pid) != os.getpid() and integrity.is_alive(int(pid))):
            continue
        if kind == "old" and not folder.exists():
            os.replace(path, folder)
        with suppress(OSError):
            integrity.remove(path)
