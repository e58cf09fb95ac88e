"""Whatever lies where a JSON file should be: an object, or one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slimexp.file.bounded import one_line, read_object, require_file
from slimexp.file.integrity import Damaged

DAMAGE = {
    "empty": (b"", "Expecting value"),
    "a list": (b"[]", "it holds a list, not an object"),
    "cut short": (b'{"a": 1', "Expecting ',' delimiter"),
    "not UTF-8": (b'{"a": "\xff"}', "can't decode byte 0xff"),
    "brackets": (b"[" * 100_000, "it is nested too deeply"),
    "braces": (b'{"a":' * 100_000, "it is nested too deeply"),
    "a number of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", "4300 digits"),
    "more than 1 MB": (b"{}" + b" " * 2**20, "it must have at most 1 MB"),
}
STRICT = {
    "NaN": (b'{"a": NaN}', "NaN is no finite number"),
    "Infinity": (b'{"a": -Infinity}', "-Infinity is no finite number"),
    "too large for a float": (b'{"a": 1e999}', "1e999 is no finite number"),
    "a name twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
}
PLACES: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "nothing": lambda path: None,
}

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("what", DAMAGE | STRICT)
def test_a_damaged_file_is_one_line(what: str, tmp_path: Path) -> None:
    content, why = (DAMAGE | STRICT)[what]
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_object(path, most_mb=1, strict=what in STRICT, way_out="copy it anew")
    assert str(raised.value).startswith(f"'{path}' is damaged (") and str(raised.value).endswith("): copy it anew")
    assert why in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_file_is_one_line_and_not_waited_for(what: str, tmp_path: Path) -> None:
    PLACES[what](path := tmp_path / "some.json")
    with pytest.raises(ValueError, match=r"^'.*some\.json' is damaged \(.+\): get the file anew$"):
        read_object(path)
    with pytest.raises((ValueError, OSError)):
        require_file(path)


def test_others_may_write_infinity_and_links(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_bytes('{"a": [0.0, Infinity], "b": "é"}'.encode())
    (tmp_path / "here.json").symlink_to("there.json")  # as the hub's cache has it
    assert read_object(tmp_path / "here.json") == {"a": [0.0, float("inf")], "b": "é"}
    (tmp_path / "there.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "here.json", strict=True) == {"a": 1}


def test_without_a_way_out_the_message_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text("{")
    with pytest.raises(Damaged, match=r"^some\.json is no JSON object: Expecting property name"):
        read_object(tmp_path / "some.json", way_out=None)


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 400)) == "x" * 300 + " ..."
