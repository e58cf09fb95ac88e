"""A compressed model as a folder: what plain transformers loads, and what the next stage needs to go on.

``config.json``, ``model.safetensors`` and the tokenizer are the deployable model. ``manifest.json``
says what was done to it; ``training.safetensors`` is there only when masks or fake-quantizers sit on
its weights, and holds the weights beneath them. The manifest says the size and digest of each file.
"""

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from slimexp.cut.source import CutOut
from slimexp.file import integrity
from slimexp.file.bounded import OWN_MB, read_object
from slimexp.file.integrity import Damaged
from slimexp.format import manifest
from slimexp.format.manifest import FORMAT
from slimexp.format.pack import is_fixed, pack, plain_state
from slimexp.model import serving
from slimexp.model.base import Family, Source
from slimexp.model.cache import cache_bits, round_cache
from slimexp.model.loading import Pretrained, bare, family_named, from_folder
from slimexp.model.reading import reach, tokenizer_of, without_bars
from slimexp.model.restore import restore
from slimexp.model.tokenizer import save_tokenizer
from slimexp.quantizer.base import Quantizer
from slimexp.record.record import OF_LAYER
from slimexp.weight.attachment import attached

MANIFEST = manifest.NAME
TRAINING = "training.safetensors"
_PID = re.compile(r"[0-9]{1,9}")  # the system has none with more digits
_LEAVES_DENSE = "Finetune"  # the only technique that compresses nothing


def save(
    family: Family, folder: Path, *, dtype: torch.dtype, stages: Sequence[Mapping[str, Any]], key: str | None = None
) -> None:
    """Write the model; an artifact already at ``folder`` survives until the new one is whole.

    Args:
        family: The model, attachments and all; it is left as it was.
        folder: Where to.
        dtype: Type of the stored floating-point weights.
        stages: What was done to the model so far, oldest first.
        key: Key of the stage that the artifact belongs to, where it belongs to one.

    Raises:
        OSError: The disk is full or the folder not writable; nothing at ``folder`` has changed.
    """
    with _aside(folder) as partial:
        model = family.model
        if any(isinstance(attachment, Quantizer) for _, attachment in attached(model)):
            _save_packed(model, partial, dtype)
        else:
            plain = folded(model)
            _check_held(plain.state_dict(), dtype)
            nn.Module.to(plain, dtype)
            with without_bars():
                plain.save_pretrained(partial)
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
            _save_training(model, partial / TRAINING)
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


def check(folder: Path, *, key: str | None = None) -> None:
    """Compare an artifact with its manifest; one of an older slimexp, which has no digests, as far as can be.

    Args:
        folder: The artifact.
        key: Key of the stage whose artifact it must be; ``None`` for any.

    Raises:
        Damaged: A file is missing, cut short or of other content, or it is the artifact of another stage.
    """
    if not folder.is_dir():
        raise Damaged("it is no folder")
    if not os.path.lexists(folder / MANIFEST):
        raise Damaged(f"{MANIFEST} is missing")
    content = read_object(folder / MANIFEST, most_mb=OWN_MB, strict=True, way_out=None)
    if missing := [name for name in ("format", "family", "max_length", "stages", "attachments") if name not in content]:
        raise Damaged(f"{MANIFEST} lacks {', '.join(missing)}")
    if content.keys() & {integrity.SEAL, "digests"}:
        integrity.check_seal(content)
    try:
        integrity.check_files(folder, content.get("digests", {}))
        stages = content["stages"]
        made = content["key"] if "key" in content else stages[-1].get("key", key) if stages else key
    except (AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST} is of another form") from error
    if key is not None and made != key:
        raise Damaged(f"it is of another stage, {made}")


def check_source(source: Source | None) -> None:
    """Refuse a model of the user that is a damaged artifact; what is none of ours has nothing to be compared with.

    Raises:
        ValueError: It is damaged.
    """
    model = source.source if isinstance(source, CutOut) else source
    if not isinstance(model, Pretrained) or not os.path.lexists(Path(model.folder) / MANIFEST):
        return
    try:
        check(Path(model.folder))
    except Damaged as error:
        raise ValueError(f"model '{model.path}' is damaged ({error}): {manifest.WAY_OUT}") from error


def load(folder: Path) -> Family:
    """The model as training left it, attachments in place, so that a further stage goes on from there."""
    said = read_manifest(folder)
    if not said["attachments"]:
        return deployed(folder)
    make, config = bare(folder, said["family"], said["max_length"])
    model = make(config)
    restore(model, said["attachments"], folder / TRAINING)
    round_cache(model, cache_bits(model.config))
    if model.can_generate():
        model.generation_config = reach(GenerationConfig, folder)
    return family_named(said["family"])(model.eval(), tokenizer_of(folder), max_length=said["max_length"])


def manifest_of(source: Source) -> dict[str, Any]:
    """The manifest of what ``source`` names; empty where it is no artifact."""
    folder = Path(source.folder) if isinstance(source, Pretrained) else None
    return read_manifest(folder) if folder is not None and os.path.lexists(folder / MANIFEST) else {}


def is_quantized(source: Source, task: str) -> bool:
    """Whether ``source`` names a quantized model, an artifact's or another's."""
    rows = manifest_of(source).get("attachments", ())
    return any(row["class"].startswith("slimexp.quantizer.") for row in rows) or _format(source, task) is not None


def _format(source: Source, task: str) -> str | None:
    """What the weights of a quantized model are stored as."""
    if isinstance(source, CutOut):
        return _format(source.source, task)
    stored = getattr(source.validate(task), "quantization_config", None)
    return str(dict(stored).get("quant_method", "quantized")) if stored else None


def compressed_by(source: Source, task: str) -> list[str]:
    """What made a model for ``task`` smaller: its stages, or the format of a foreign one; empty for a dense model."""
    if isinstance(source, CutOut):
        return ["cut"]
    done = [stage["name"] for stage in manifest_of(source).get("stages", ()) if stage.get("technique") != _LEAVES_DENSE]
    stored = _format(source, task)
    return done or ([] if stored is None else [stored])


def deployed(folder: Path) -> Family:
    """The model as a user gets it: by plain transformers, from the deployable files."""
    said = read_manifest(folder)
    return from_folder(folder, said["family"], said["max_length"])


def served(folder: str | Path, device: str | torch.device = "cpu") -> Family:
    """The model as it is measured: what is packed on the fastest kernels of ``device``, see ``model.serving``."""
    folder = Path(folder)
    said = read_manifest(folder)
    return serving.served(folder, said["family"], said["max_length"], device=device)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was done to the model in ``folder``.

    Raises:
        ValueError: There is no manifest, or it cannot be read, or it is of a newer format, see ``manifest``.
    """
    return manifest.read(folder)


def reached(folder: Path) -> dict[str, float]:
    """What the stages that compressed a model say that they did to it; empty for what is no artifact.

    Returns:
        ``<stage>_<figure>`` of the model (``quantize_share``: how much was quantized), ``<figure>/<layer>`` of layers.
    """
    if not os.path.lexists(folder / MANIFEST):
        return {}
    stages = [one for one in read_manifest(folder)["stages"] if one.get("technique") != _LEAVES_DENSE]
    done = [(stage["name"], *item) for stage in stages for item in stage.get("coverage", {}).items()]
    return {name if OF_LAYER in name else f"{stage}_{name}": float(value) for stage, name, value in done}


def folded(model: PreTrainedModel) -> PreTrainedModel:
    """A plain copy in which every weight is what its attachments make of it."""
    plain = _plain_class(model)(model.config)
    plain.load_state_dict(plain_state(model), strict=False)  # tied weights are in it once
    plain.tie_weights()
    if model.can_generate():
        plain.generation_config = model.generation_config
    return plain.eval()


def _save_packed(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    state, quantization = pack(model)
    _check_held({name: t for name, t in state.items() if not is_fixed(name, t)}, dtype)
    cast = {name: t if is_fixed(name, t) else t.to(dtype) for name, t in state.items()}
    save_file(
        {name: t.contiguous() for name, t in cast.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"quantization_config": quantization, "dtype": str(dtype).removeprefix("torch.")}
    config["architectures"] = [_plain_class(model).__name__]
    path.write_text(json.dumps(config, indent=2) + "\n")


def _check_held(state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Refuse weights that ``dtype`` has no number for, before they are infinite in a file.

    Raises:
        ValueError: Names the first.
    """
    most = torch.finfo(dtype).max
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dtype.itemsize <= 1 or not tensor.numel():
            continue
        largest = float(tensor.abs().max())
        if most < largest < math.inf:
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"'{name}' holds {largest:.4g}, and {kind} at most {most:.0f}: set save_dtype=bfloat16 or float32"
            )


def _save_training(model: PreTrainedModel, path: Path) -> None:
    """Every tensor once, by the first of its names; the library lists the others in an order that is never the same."""
    state = model.state_dict()
    first: dict[Any, str] = {}
    for name in sorted(state):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        first.setdefault(place, name)
    save_file({name: state[name].contiguous() for name in first.values()}, path)


def _plain_class(model: nn.Module) -> type:
    """The class before parametrizations changed it."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers"))


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its name when the block ends well, and is gone when it does not."""
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
    """Remove what processes of this machine that were killed left beside ``folder``; an artifact among it goes back."""
    for path in folder.parent.glob(f".{folder.name}.{platform.node()}.*"):
        pid, kind = path.name.split(".")[-2:]
        if not _PID.fullmatch(pid) or (int(pid) != os.getpid() and psutil.pid_exists(int(pid))):
            continue
        if kind == "old" and not folder.exists():
            os.replace(path, folder)
        with suppress(OSError):
            integrity.remove(path)
