"""The header of a GGUF file: what the model is, what its weights are stored as, and which tokens are special.

A GGUF is one file with the config, the tokenizer and the weights of a model, mostly quantized in blocks (the format of
llama.cpp: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimexp.file.bounded import one_line
from slimexp.host.extra import require

MAGIC = b"GGUF"
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_CONTROL = 3  # token_type of a token that stands for no text
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a GGUF file says of its model; none of its weights were read.

    Attributes:
        architecture: Name of the architecture in llama.cpp, such as ``llama`` or ``qwen2``.
        weights: Type of storage (``Q4_1``, ``F16``) -> number of weights that are stored so.
        tensors: Names of the tensors.
        vocabulary: Number of tokens.
        special_tokens: Role (``bos_token``, ...) -> the token, of those that the file names.
        control_tokens: Tokens that stand for no text, in the order of their ids.
        rope_scaling: How positions beyond those of the training are scaled (``yarn``, ...), if at all.
        rope_frequencies: Divisors of the frequencies of positions, [head size / 2]; empty where there are none.
    """

    architecture: str
    weights: Mapping[str, int]
    tensors: frozenset[str]
    vocabulary: int
    special_tokens: Mapping[str, str]
    control_tokens: tuple[str, ...]
    rope_scaling: str | None
    rope_frequencies: tuple[float, ...]

    @property
    def stored_as(self) -> str:
        """The type that most weights are stored as."""
        return max(self.weights, key=lambda name: self.weights[name])

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type that suits the model: its own, if it holds floats, else bfloat16.

        Models of this kind were trained in bfloat16. Its rounding is at most 0.4 % of a weight, where the blocks of a
        quantized file rounded by 0.8 % (Q8_0) or 7 % (Q4) of the largest weight of each. float16 is finer, and
        overflows where models of bfloat16 do not.
        """
        return _FLOATS.get(self.stored_as, torch.bfloat16)


def check_path(path: Path) -> None:
    """Refuse what cannot be a whole GGUF file, by its name and its first bytes.

    Raises:
        ValueError: It is missing, a folder, a part of several, or of another format.
    """
    name = f"'{path}'"
    if path.is_dir():
        held = sorted(entry.name for entry in path.glob("*.gguf"))
        shown = f": it holds {', '.join(held[:3])}" if held else ", and it holds none"
        if (path / "config.json").exists():
            shown = ": it is in the hub's format, which model=pretrained reads"
        raise ValueError(f"{name} is a folder, and model=gguf takes a file, model.path=FILE.gguf{shown}")
    if not path.exists():
        raise ValueError(
            f"no file {name}: model.path of model=gguf takes a file FILE.gguf, or one on the hub, OWNER/NAME/FILE.gguf"
        )
    if part := _SPLIT.search(path.name):
        raise ValueError(
            f"{name} is part {int(part[1])} of {int(part[2])} files: join them by `llama-gguf-split --merge FIRST "
            "WHOLE.gguf`, and give that file"
        )
    if not path.is_file():
        raise ValueError(f"{name} is no regular file: model.path of model=gguf takes a file FILE.gguf")
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise ValueError(f"{name} is no GGUF file, for it starts with {start!r} and not {MAGIC!r}: get the file anew")


def read(path: Path) -> tuple[Header, Any]:
    """The header of a GGUF file, whose tensors must all lie within it, and what the package gguf parsed it by.

    Raises:
        ValueError: The package gguf is not installed, or the file is none, a part of several or cut short.
    """
    gguf = _package()
    check_path(path)
    try:
        reader = _reader(gguf)(path)
        header = _header(reader)
        parts = _value(reader, "split.count") or 1
    except Exception as error:  # numbers that are not what they were fail in every way
        raise ValueError(f"'{path}' was cut short or is damaged ({one_line(error)}): get the file anew") from error
    if parts > 1:
        raise ValueError(
            f"'{path}' is one of {parts} files: join them by `llama-gguf-split --merge FIRST WHOLE.gguf`, and give "
            "that file"
        )
    size = path.stat().st_size
    if (end := max((int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors), default=0)) > size:
        raise ValueError(f"'{path}' was cut short, it has {size:,} of {end:,} bytes: get the file anew")
    return header, reader


@contextmanager
def parsed(reader: Any) -> Iterator[None]:
    """A context in which the package gguf gives this reader, which has parsed the file that is about to be read.

    transformers parses a file anew for its config, its tokenizer and its weights: seconds each, of 50,000 tokens.
    """
    gguf = _package()
    make = gguf.GGUFReader
    gguf.GGUFReader = lambda *_, **__: reader
    try:
        yield
    finally:
        gguf.GGUFReader = make


def _package() -> Any:
    return require("gguf", extra="gguf", by="model=gguf")


def _reader(gguf: Any) -> Any:
    class Reader(gguf.GGUFReader):
        """Slices a plain array: a slice of a memory map costs three times as much, and a file takes a million."""

        data: Any

        def _get(self, *arguments: Any, **options: Any) -> Any:
            self.data = np.asarray(self.data)
            return super()._get(*arguments, **options)

    return Reader


def _header(reader: Any) -> Header:
    architecture = _value(reader, "general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("its metadata name no architecture")
    weights: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        weights[kind] = weights.get(kind, 0) + int(tensor.n_elements)
    if not weights:
        raise ValueError("it holds no weights")
    tokens, kinds = _value(reader, "tokenizer.ggml.tokens") or [], _value(reader, "tokenizer.ggml.token_type") or []
    ids = {role: _value(reader, f"tokenizer.ggml.{name}_token_id") for role, name in _SPECIAL.items()}
    frequencies = [tensor.data.tolist() for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    return Header(
        architecture=architecture,
        weights=weights,
        tensors=frozenset(tensor.name for tensor in reader.tensors),
        vocabulary=len(tokens),
        special_tokens={role: tokens[i] for role, i in ids.items() if i is not None and 0 <= i < len(tokens)},
        control_tokens=tuple(token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL),
        rope_scaling=_value(reader, f"{architecture}.rope.scaling.type"),
        rope_frequencies=tuple(frequencies[0]) if frequencies else (),
    )


def _value(reader: Any, name: str) -> Any:
    """A value of the metadata; ``None`` where it has no such name."""
    field = reader.fields.get(name)
    return None if field is None else field.contents()
