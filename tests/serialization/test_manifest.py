"""A manifest is data: every field is checked when it is read, and nothing that it names is run or imported."""

import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import slimexp
from slimexp.serialization import manifest
from slimexp.weight.attachment import Attachment

MASK = {"module": "a.b", "tensor": "weight", "class": "slimexp.weight.mask.Mask", "arguments": {"shape": [2, 3]}}
PACT = "slimexp.quantizer.pact.Pact"
MINMAX = {"bits": 4, "group_size": None, "symmetric": True}
WHOLE: dict[str, Any] = {
    "format": 1,
    "family": "seq2seq",
    "max_length": 64,
    "stages": [{"name": "prune", "technique": "Prune", "key": "ab12", "coverage": {"share": 1.0, "sparsity/a.b": 0.5}}],
    "attachments": [MASK],
    "cache_bits": 4,
    "files": ["config.json", "model.safetensors"],
}

pytestmark = pytest.mark.fast


def written(folder: Path, **changes: Any) -> Path:
    content = {name: value for name, value in (WHOLE | changes).items() if value is not ...}
    (folder / manifest.NAME).write_text(json.dumps(content))
    return folder


def row(**changes: Any) -> list[dict[str, Any]]:
    return [MASK, {name: value for name, value in (MASK | changes).items() if value is not ...}]


def quantizer(**changes: Any) -> list[dict[str, Any]]:
    arguments = {name: value for name, value in (MINMAX | changes).items() if value is not ...}
    return row(**{"class": "slimexp.quantizer.minmax.MinMax", "arguments": arguments})


def test_a_whole_one_is_read_as_it_is(tmp_path: Path) -> None:
    assert manifest.read(written(tmp_path)) == WHOLE
    later = {"digests": {"config.json": "ab"}}
    assert manifest.read(written(tmp_path, **later)) == WHOLE | later
    assert manifest.read(written(tmp_path, cache_bits=...))["cache_bits"] is None  # before caches were rounded
    assert manifest.read(written(tmp_path, stages=[{"name": "dense"}]))["stages"] == [{"name": "dense"}]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": "1"}, "format must be a whole number from 1 to 16777216, got '1'"),
    "no format": ({"format": ...}, "format must be a whole number from 1 to 16777216, got None"),
    "a float": ({"format": 1.0}, "got 1.0"),
    "family": ({"family": "vision"}, "family must be one of seq2seq, causal_lm, classification, got 'vision'"),
    "family list": ({"family": ["seq2seq"]}, "family must be one of"),
    "no family": ({"family": ...}, "family must be one of"),
    "short": ({"max_length": 1}, "max_length must be a whole number from 2 to 16777216, got 1"),
    "long": ({"max_length": 10**18}, "max_length must be a whole number from 2"),
    "true": ({"max_length": True}, "max_length must be a whole number"),
    "stages": ({"stages": {}}, "stages must be a list, got {}"),
    "a stage": ({"stages": [[]]}, r"stages[0] must be an object, got []"),
    "nameless": ({"stages": [{}]}, "stages[0].name must be a word, got ''"),
    "name": ({"stages": [{"name": 5}]}, "stages[0].name must be a word, got 5"),
    "lines": ({"stages": [{"name": "a\nb"}]}, r"stages[0].name must be a word, got 'a\nb'"),
    "technique": ({"stages": [{"name": "a", "technique": None}]}, "stages[0].technique must be a word, got None"),
    "key": ({"stages": [{"name": "a", "key": 1}]}, "stages[0].key must be a word, got 1"),
    "coverage": ({"stages": [{"name": "a", "coverage": []}]}, "stages[0].coverage must be numbers by name, got []"),
    "figure": ({"stages": [{"name": "a", "coverage": {"x": "1"}}]}, "coverage.x must be a finite number, got '1'"),
    "bool": ({"stages": [{"name": "a", "coverage": {"x": True}}]}, "coverage.x must be a finite number, got True"),
    "huge": ({"stages": [{"name": "a", "coverage": {"x": 10**400}}]}, "coverage.x must be a finite number, got 1000"),
    "cache_bits": ({"cache_bits": 3}, "cache_bits must be null, 4 or 8, got 3"),
    "cache float": ({"cache_bits": 4.0}, "cache_bits must be null, 4 or 8, got 4.0"),
    "files": ({"files": "config.json"}, "files must be a list, got 'config.json'"),
    "no files": ({"files": ...}, "files must be a list, got None"),
    "outside": ({"files": ["../../etc/passwd"]}, "files[0] must be the name of a file in the folder, got '../../etc"),
    "absolute": ({"files": ["a", "/etc/passwd"]}, "files[1] must be the name of a file in the folder"),
    "parent": ({"files": [".."]}, "files[0] must be the name of a file in the folder, got '..'"),
    "file": ({"files": [5]}, "files[0] must be the name of a file in the folder, got 5"),
    "attachments": ({"attachments": None}, "attachments must be a list, got None"),
    "a row": ({"attachments": [None]}, "attachments[0] must be an object, got None"),
    "module": ({"attachments": row(module=5)}, "attachments[1].module must be a text, got 5"),
    "tensor": ({"attachments": row(tensor=...)}, "attachments[1].tensor must be a text, got None"),
    "arguments": ({"attachments": row(arguments=[])}, "attachments[1].arguments must be an object, got []"),
    "unknown": ({"attachments": quantizer(turns=5)}, "arguments must be of bits, group_size, symmetric, got 'turns'"),
    "lacking": ({"attachments": quantizer(bits=...)}, "arguments must be given with 'bits', got {"),
    "bits": ({"attachments": quantizer(bits="4")}, "attachments[1].arguments.bits must be int, got '4'"),
    "bits true": ({"attachments": quantizer(bits=True)}, "arguments.bits must be int, got True"),
    "bits huge": ({"attachments": quantizer(bits=10**30)}, "arguments.bits must be int, got 1000"),
    "group": ({"attachments": quantizer(group_size=[1])}, "arguments.group_size must be int | str | None, got [1]"),
    "shape": ({"attachments": row(arguments={"shape": [2, -1]})}, "arguments.shape[1] must be a whole number from 1"),
    "dimensions": ({"attachments": row(arguments={"shape": [1] * 99})}, "arguments.shape must be Sequence[int], got ["),
    "no sequence": ({"attachments": row(arguments={"shape": "ab"})}, "arguments.shape must be Sequence[int], got 'ab'"),
    "a callable": (
        {
            "attachments": row(
                **{"class": "slimexp.quantizer.pact.Pact", "arguments": {"bits": 8, "range": "os.system"}}
            )
        },
        "arguments.range must be Callable[..., Quantizer] | None, got 'os.system'",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_field_that_cannot_be_is_named(what: str, tmp_path: Path) -> None:
    changes, why = FAULTS[what]
    with pytest.raises(ValueError) as raised:
        manifest.read(written(tmp_path, **changes))
    message = str(raised.value)
    assert message.startswith(f"'{tmp_path / manifest.NAME}' is damaged (") and why in message and "\n" not in message
    assert message.endswith("): copy or train the model anew")


@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "os.system",
        "slimexp.clean.main",
        "slimexp.weight.attachment.Attachment",
        "slimexp.quantizer.minmax.MinMax.__init__",
        "slimexp.quantizer.minmax",
        "MinMax",
        "",
        ".",
    ],
)
def test_a_class_that_is_no_attachment_is_refused(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, attachments=row(**{"class": name, "arguments": {"args": ["touch", "canary"]}}))
    with pytest.raises(ValueError, match=r"attachments\[1\]\.class must be an attachment that slimexp ships, got '"):
        manifest.read(folder)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / manifest.NAME)
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged \(it is no regular file\): copy or train"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("content", ['{"format": 1, "format": 2}', '{"format": NaN}', "[" * 100_000])
def test_json_is_read_strictly(content: str, tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged \(.*\): copy or train the model anew"):
        manifest.read(tmp_path)


def subclasses(of: type) -> Iterator[type]:
    for one in of.__subclasses__():
        yield one
        yield from subclasses(one)


def test_the_table_names_every_attachment_there_is() -> None:
    package = Path(slimexp.__file__).parent
    for path in package.rglob("*.py"):
        if re.search(r"^from slimexp\.(attachment|quantizer)", path.read_text(), re.MULTILINE):
            importlib.import_module(".".join(path.relative_to(package.parent).with_suffix("").parts))
    attachments = {one for one in subclasses(Attachment) if one.__module__.startswith("slimexp.")}
    concrete = {f"{one.__module__}.{one.__qualname__}" for one in attachments if not inspect.isabstract(one)}
    assert concrete == manifest.ATTACHMENTS
