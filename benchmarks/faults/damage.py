"""Ways to damage any file: its bytes, its place on the disk, the values of its JSON; and code that it may hold."""

import copy
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.outcome import CANARY, SCRIPT

Damage = Callable[[Path], object]  # of a file, in place

ESCAPE = "\x1b[31mred\x1b[2J"
DEEP = "[" * 100_000
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 10**30, "", "x", "../../victim", ESCAPE, r"$\frac{$", SCRIPT, [], ["x"], {}, {"x": 1},
    float("nan"), float("inf"), [[[[]]]], "a\nb\r\0c", "9" * 5000, "/dev/zero",
)  # fmt: skip


def content(change: Callable[[bytes], bytes]) -> Damage:
    """Other bytes."""
    return lambda path: _write(path, change(path.read_bytes()))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :] if data else b"\x10"


def _instead(make: Callable[[Path], Any]) -> Damage:
    def damage(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return damage


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


BYTES: dict[str, Damage] = {
    "empty": content(lambda data: b""),
    "cut": content(lambda data: data[: len(data) // 2]),
    "cut by one": content(lambda data: data[:-2]),
    "flipped": content(lambda data: _flipped(data, len(data) // 2)),
    "flipped early": content(lambda data: _flipped(data, 3)),
    "zeros": content(lambda data: bytes(len(data))),
    "noise": content(lambda data: random.Random(0).randbytes(max(len(data), 64))),
    "no UTF-8": content(lambda data: data[:10] + b"\xff\xfe\x80" + data[10:]),
    "twice": content(lambda data: data + data),
    "deep": content(lambda data: DEEP.encode()),
    "one long line": content(lambda data: b"x" * 2_000_000),
}
PLACES: dict[str, Damage] = {
    "missing": _instead(lambda path: None),
    "folder": _instead(lambda path: path.mkdir()),
    "/dev/zero": _instead(lambda path: path.symlink_to("/dev/zero")),
    "pipe": _instead(os.mkfifo),
    "dangling link": _instead(lambda path: path.symlink_to("nowhere")),
    "link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a terabyte": _instead(_sparse),
}
JSON: dict[str, Damage] = {
    name: content(lambda data, text=text: text.encode())
    for name, text in {
        "null": "null", "list": "[]", "object": "{}", "text": '"x"', "number": "1", "NaN": "NaN",
        "surrogate": '"\\ud800"', "huge number": "1" + "0" * 5000, "half a pair": '{"a": ',
    }.items()
}  # fmt: skip


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything below ``tree``, of long lists the first two items."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, item in pairs:
        yield (*path, key)
        yield from leaves(item, (*path, key))


def put(tree: Any, path: Sequence[Any], value: Any) -> Any:
    """A copy of ``tree`` with another value at ``path``; ``...`` takes it out."""
    tree = copy.deepcopy(tree)
    place = tree
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return tree


def edited(path: Sequence[Any], value: Any) -> Damage:
    """Another value in a JSON file."""
    return lambda file: _write(file, json.dumps(put(json.loads(file.read_text()), path, value)).encode())


def values(file: Path, *, each: int, most: int, skip: Sequence[str] = ()) -> Iterator[tuple[str, Damage]]:
    """Wrong values at every place of a JSON file, in turn, and every place left out.

    Args:
        file: An undamaged one.
        each: Values per place.
        most: Places; spread over the file.
        skip: Names of keys that are left alone.
    """
    places = [path for path in leaves(json.loads(file.read_text())) if not set(path) & set(skip)]
    places = places[:: max(1, len(places) // most)]
    for number, path in enumerate(places):
        name = ".".join(map(str, path))
        yield f"without {name}", edited(path, ...)
        for turn in range(each):
            value = WRONG[(5 * number + 3 * turn) % len(WRONG)]
            yield f"{name} = {json.dumps(value)[:30]}", edited(path, value)


def root_of(path: Path) -> Path:
    """The case's root that a file of it lies below."""
    return next(parent.parent for parent in path.absolute().parents if parent.name == "home")


def command(path: Path) -> str:
    """What a shell would do that must not be done."""
    return f"touch {root_of(path) / CANARY}"


class _Runs:
    """Runs a shell command when it is unpickled."""

    def __init__(self, shell: str) -> None:
        self.shell = shell

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.shell,)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Runs(command(path))))


def pickled_in_zip(path: Path) -> None:
    """As ``torch.save`` writes it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Runs(command(path)), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    path.write_bytes(made.getvalue())


CODE: dict[str, Damage] = {"pickle that runs code": pickled, "torch file that runs code": pickled_in_zip}


def module(folder: Path, name: str) -> None:
    """A module that runs code when it is imported, in a folder."""
    shell = command(folder / name)
    (folder / f"{name}.py").write_text(
        f"import os\nos.system({shell!r})\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig): pass\nclass Model(LlamaForCausalLM): pass\n"
        "class Tokenizer(PreTrainedTokenizerFast): pass\nclass Thing:\n    def __init__(self, **more): pass\n"
    )


def linked(target: str) -> Damage:
    """A link in the place of a file or folder."""

    def damage(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(root_of(path) / target)

    return damage
