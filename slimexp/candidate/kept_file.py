"""Results that took long, in a file: each is written when it is there, and none is used for another model or text."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimexp.file import integrity
from slimexp.file.bounded import read_object
from slimexp.record.lock import held

_ANEW = "remove it, and it is made anew"


class KeptFile:
    """Numbers by name, with what they depend on; several processes may add to one file.

    Args:
        path: The file; it need not exist.
        of: What the numbers depend on, by a word for a message; JSON values.
        way_out: What to do where the file is of something else.

    Raises:
        ValueError: The file holds numbers of something else, or is damaged.
    """

    def __init__(self, path: Path, of: Mapping[str, Any], way_out: str) -> None:
        self.path, self.of, self._way_out = path, json.loads(json.dumps(dict(of))), way_out
        self.numbers = self._read()

    def _read(self) -> dict[str, float]:
        """The numbers in the file; none where it does not exist."""
        path = self.path
        if not path.exists():
            return {}
        content = read_object(path, way_out=_ANEW)
        before, numbers = content.get("of"), content.get("numbers")
        if not isinstance(before, dict) or not isinstance(numbers, dict):
            raise ValueError(f"'{path}' is damaged: {_ANEW}")
        try:
            integrity.check_numbers(numbers, "numbers")
        except integrity.Damaged as error:
            raise ValueError(f"'{path}' is damaged ({error}): {_ANEW}") from error
        both = {name: (before.get(name), self.of.get(name)) for name in sorted(self.of.keys() | before.keys())}
        if unlike := {name: values for name, values in both.items() if values[0] != values[1]}:
            changes = "; ".join(f"{name} was {_short(old)}, is {_short(new)}" for name, (old, new) in unlike.items())
            raise ValueError(f"'{path}' was made of something else: {changes}: {self._way_out}")
        return numbers

    def beside(self) -> "tempfile.TemporaryDirectory[str]":
        """A temporary folder beside the file, where there is room for models; a context."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".model-")

    def add(self, name: str, number: float) -> None:
        """Keep a number, beside those that other processes added meanwhile; the file is whole at every moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with held(self.path.with_name(f".{self.path.name}.lock"), f"another search writes {self.path.name}"):
            self.numbers |= self._read() | {name: number}
            content = {"of": self.of, "numbers": self.numbers}
            integrity.write(self.path, json.dumps(content, indent=1) + "\n")


def _short(value: Any) -> str:
    """A value in a message; of a digest its beginning."""
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
