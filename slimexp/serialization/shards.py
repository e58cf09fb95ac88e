"""Weights on disk as transformers lays them out: one safetensors file, or shards with an index.

Tensors are written as they come, so that no second model is held while one is saved, and read one by one. A file that
is full goes to the disk, and its digest is taken, while the next one is written.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimexp.file import integrity

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = "model-{number:05d}-of-{count:05d}.safetensors"
_SMALL = 64_000_000  # bytes: a model that is held whole, and written with a header of its exact size
_ALIGNMENT = 8  # bytes: the largest number of a tensor, so that readers can map them
_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class _Shard:
    """A safetensors file whose header is written last, into room that was left for it.

    The format has no gaps between tensors. What does not end on a multiple of ``_ALIGNMENT`` is held back and written
    at the end, wide numbers first, so that every tensor begins on a multiple of its own width.

    Args:
        path: The file.
        names: Most tensors that it may get.
    """

    def __init__(self, path: Path, names: int) -> None:
        self.path = path
        self.bytes = 0
        self.header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._room = 1024 + 512 * names
        self._held: dict[str, Tensor] = {}
        self._file: IO[bytes] = path.open("xb")
        self._file.seek(8 + self._room)

    @property
    def full(self) -> bool:
        """Whether its header may have no room for another name."""
        return len(json.dumps(self.header)) > self._room - 1024

    def add(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().contiguous().cpu()
        self.bytes += tensor.nbytes
        if tensor.nbytes % _ALIGNMENT:
            self._held[name] = tensor.clone()
        else:
            self._write(name, tensor)

    def close(self) -> None:
        for name, tensor in sorted(self._held.items(), key=lambda item: -item[1].itemsize):
            self._write(name, tensor)
        self._held.clear()
        header = json.dumps(self.header, separators=(",", ":")).encode()
        assert len(header) <= self._room, "room for the header of a shard"
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, name: str, tensor: Tensor) -> None:
        begin = self._file.tell() - 8 - self._room
        if tensor.numel():
            self._file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        self.header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }


class Writer:
    """Writes the weights of a model; a context, at whose end the files have their names.

    Args:
        folder: An existing folder.
        max_bytes: Most bytes of a file; a tensor that is larger has a file of its own.
        names: About how many tensors there will be.
    """

    def __init__(self, folder: Path, *, max_bytes: int, names: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.names = names
        self._small: dict[str, Tensor] | None = {}  # all tensors so far; ``None`` once they are too many
        self._shards: list[_Shard] = []
        self._beside = ThreadPoolExecutor(max_workers=4)  # a digest takes longer than writing does
        self._brought: list[Future[None]] = []  # to the disk

    def __enter__(self) -> Self:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, from any device."""
        if self._small is None:
            self._stream(name, tensor)
            return
        self._small[name] = tensor.detach().contiguous().cpu()
        if sum(held.nbytes for held in self._small.values()) > min(_SMALL, self.max_bytes):
            held, self._small = self._small, None
            for earlier, value in held.items():
                self._stream(earlier, value)

    def _stream(self, name: str, tensor: Tensor) -> None:
        shard = self._shards[-1] if self._shards else None
        if shard is None or shard.full or (shard.bytes and shard.bytes + tensor.nbytes > self.max_bytes):
            if shard is not None:
                self._close(shard)
            shard = _Shard(self.folder / f".{len(self._shards)}.partial", self.names)
            self._shards.append(shard)
        shard.add(name, tensor)

    def _close(self, shard: _Shard) -> None:
        shard.close()
        self._brought.append(self._beside.submit(_bring_to_disk, shard.path))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._beside:
            if kind is None:
                self._finish()
                return
        for shard in self._shards:
            shard.discard()

    def _finish(self) -> None:
        """Give the files their names."""
        if self._small is not None:
            save_file(self._small, self.folder / WHOLE, metadata={"format": "pt"})
            return
        self._close(self._shards[-1])
        for brought in self._brought:
            brought.result()
        if len(self._shards) == 1:
            integrity.rename(self._shards[0].path, self.folder / WHOLE)
            return
        places: dict[str, str] = {}
        for number, shard in enumerate(self._shards, 1):
            name = _SHARD.format(number=number, count=len(self._shards))
            integrity.rename(shard.path, self.folder / name)
            places |= {tensor: name for tensor in shard.header if tensor != "__metadata__"}
        total = sum(shard.bytes for shard in self._shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _bring_to_disk(path: Path) -> None:
    integrity.sync(path)
    integrity.digest(path)


class Reader(Mapping[str, Tensor]):
    """The weights in a folder by name, each read when it is looked up: a view of the file, which is mapped.

    Args:
        folder: A model folder whose files were vetted.
    """

    def __init__(self, folder: Path) -> None:
        files = [WHOLE]
        if not (folder / WHOLE).exists() and (folder / INDEX).exists():
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        self._stack = ExitStack()
        self._of: dict[str, Any] = {}
        for file in files:
            opened = self._stack.enter_context(safe_open(folder / file, framework="pt"))
            self._of |= dict.fromkeys(opened.keys(), opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._of.clear()
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def has_weights(folder: Path) -> bool:
    """Whether the folder holds weights that ``Reader`` reads."""
    return (folder / WHOLE).exists() or (folder / INDEX).exists()
