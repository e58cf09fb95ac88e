"""Bytes on disk and in memory, and number of weights."""

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import Tensor, nn

from slimexp.data.base import Corpus, Direction
from slimexp.kernel.base import Kernel
from slimexp.measure.base import Measure, Subject, untouched
from slimexp.measure.resident import MB, resident_bytes
from slimexp.measure.workload import Request, Workload
from slimexp.model.saving import save_settings
from slimexp.model.serving import stored_type
from slimexp.model.tokenizer import save_tokenizer
from slimexp.serialization import manifest

_WEIGHTS = (  # what transformers looks for, in its order; an index names the shards
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_LOADED = (
    "*.index.json", "manifest.json", "measures.json", "trainer_state.json", "requirements.txt", "unpacked.json",
)  # fmt: skip
_WEIGHT_SUFFIXES = (".safetensors", ".bin")

# Parameters of a quantized layer beside its integers: they take bytes, but are no weights of the model.
_BOOKKEEPING = ("*_scale", "*_zero_point", "*_global_scale", "*_g_idx", "*_shape")


class Size(Measure):
    """Bytes and parameters.

    - ``disk_mb``: the files a user ships (1 MB = 10^6 bytes): those the manifest lists, else those that
      transformers loads from the folder. ``weights_mb``: those of them that hold tensors. Config and tokenizer of a
      model of others count as an artifact has them, so that one model has one size.
    - ``params_live``: weights of the model, tied ones once; a packed integer weight counts the elements it
      stands for, its scales and zero points do not count. ``params_nonzero``: those that are not zero.
    - ``resident_mb``: bytes of all parameters and buffers in the type of the file (``Subject.shipped``), after one
      forward pass: compressed-tensors, for one, unpacks to floats at the first pass, so that what it holds before is
      not what serving needs.
    """

    directions: ClassVar[Mapping[str, Direction]] = {
        "disk_mb": "min",
        "weights_mb": "min",
        "params_live": "min",
        "params_nonzero": "min",
        "resident_mb": "min",
    }

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        subject = subject.shipped
        model = subject.family.model
        files = deployable(subject.folder)
        with untouched(model, seed=0):
            live, nonzero = count(model)
            Request(subject.family).prefill(
                Workload(batch=1, tokens=1, new_tokens=0, seed=0).fitted(subject.family).prompt(subject.family)
            )
        weights = sum(file.stat().st_size for file in files if file.suffix in _WEIGHT_SUFFIXES)
        return {
            "disk_mb": (weights + _bytes_beside(subject, files)) / MB,
            "weights_mb": weights / MB,
            "params_live": float(live),
            "params_nonzero": float(nonzero),
            "resident_mb": resident_bytes(model) / MB,
        }


def deployable(folder: Path) -> list[Path]:
    """Files of ``folder`` that serving needs.

    Raises:
        ValueError: A file that the manifest lists is missing, or there are no weights.
    """
    if (folder / manifest.NAME).exists():
        files = [folder / name for name in manifest.read(folder)["files"]]
        if missing := [file.name for file in files if not file.exists()]:
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which its manifest.json lists: save it again")
        return files
    weights = next((files for patterns in _WEIGHTS if (files := _matching(folder, patterns))), [])
    if not weights:
        raise ValueError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin): give a model folder")
    side = [file for file in _matching(folder, _SIDE_FILES) if not _any(file.name, _NOT_LOADED)]
    return weights + side


def _bytes_beside(subject: Subject, files: Iterable[Path]) -> int:
    """Bytes of the files of a model that hold no weights.

    A folder of others may have an indented tokenizer, or its vocabulary twice. Its files are counted as they are only
    where it is quantized in a way of others, which is not saved anew, or where transformers refuses to.
    """
    folder = subject.folder
    beside = sum(file.stat().st_size for file in files if file.suffix not in _WEIGHT_SUFFIXES)
    if manifest.is_in(folder) and manifest.read(folder)["format"] >= manifest.FORMAT:
        return beside
    if getattr(subject.family.model.config, "quantization_config", None) is not None:
        return beside
    with TemporaryDirectory() as place:
        anew = Path(place)
        try:
            save_settings(subject.family.model, anew, stored_type(folder))
            save_tokenizer(subject.family.tokenizer, anew)
        except ValueError:  # settings that it reads and does not write
            return beside
        return sum(file.stat().st_size for file in anew.rglob("*") if file.is_file())


def count(model: nn.Module) -> tuple[int, int]:
    """Number of weights of ``model``, and of those that are not zero; tied ones count once."""
    live = nonzero = 0
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, Kernel):
            live, nonzero = live + module.live, nonzero + module.nonzero
            continue
        for name, tensor in _weights(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                values = _values(module, name, tensor)
                live += values.numel()
                nonzero += int(torch.count_nonzero(values))
    return live, nonzero


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    first = folder / patterns[0]
    if "*" not in patterns[0] and not first.exists():
        return []
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own weights: its parameters, and integer weights kept as buffers."""
    integers = (pair for pair in module.named_buffers(recurse=False) if pair[0].startswith("weight"))
    own = chain(module.named_parameters(recurse=False), integers)
    return ((name, tensor) for name, tensor in own if not _any(name, _BOOKKEEPING))


def _values(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The weight's elements, zero where the weight they stand for is zero.

    compressed-tensors keeps ``weight_packed`` (int32 words) with ``weight_shape``, or an int8 ``weight``;
    with asymmetric scales the integer that stands for zero is the zero point.
    """
    if name == "weight_packed":
        return _unpack(module, tensor)
    zero_point = getattr(module, f"{name}_zero_point", None)
    if tensor.dtype != torch.int8 or zero_point is None or not torch.count_nonzero(zero_point):
        return tensor.detach()
    groups = zero_point.reshape(zero_point.shape[0], -1) if zero_point.dim() else zero_point.reshape(1, 1)
    each = tensor.reshape(tensor.shape[0], groups.shape[1], -1).short()
    return (each - groups.unsqueeze(-1).short()).reshape(tensor.shape)


def _unpack(module: nn.Module, packed: Tensor) -> Tensor:
    from compressed_tensors.compressors import decompress_module

    layer = copy(module)  # decompress_module works in place: give it dictionaries of its own
    layer._parameters = dict(module._parameters)
    layer._buffers = dict(module._buffers)
    decompress_module(layer)
    return layer.get_parameter("weight").detach()
