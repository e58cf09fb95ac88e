"""Signatures read from source equal those of the imported objects."""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Unpack, get_args, get_origin, get_type_hints

import pytest

from slimexp.config.composition import CONF_DIR
from slimexp.config.signature import PackageNotFound, TargetNotFound, lineage, signature

TARGETS = sorted(
    {
        line.split(":", 1)[1].split("#")[0].strip()
        for path in CONF_DIR.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.strip().startswith("_target_:")
    }
)

SHOP = """
import abc
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Generic, TypeVar, overload
from shop.back import *
from .back import Hidden as Shown
from nowhere_at_all import Base
T = TypeVar("T")
Alias = Shown

class Plain: ...
class Made:
    def __new__(cls, one, *, two=2): ...
class Child(Generic[T], Plain, Made, abc.ABC): ...
class Own(Made):
    def __init__(self, *, three: int) -> None: ...
    @classmethod
    def load(cls, path: str): ...
    @staticmethod
    def join(a, b=1): ...
class Foreign(Base): ...
@decorated
class Decorated(Own): ...

@dataclass
class Row:
    count: ClassVar[int] = 0
    left: int
    right: int = 1
    made: list = field(default_factory=list)
    asked: int = field(repr=False)
    inner: int = field(init=False)

@dataclass
class LongRow(Row):
    _: KW_ONLY
    tail: str

@overload
def both(a: int) -> int: ...
def both(a, b): ...

try:
    from fast import tool
except ImportError:
    def tool(slow): ...
"""
BACK = """
class Hidden:
    def __init__(self, key, **rest): ...
def starred(x): ...
"""


@pytest.fixture(scope="module", autouse=True)
def shop(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("site")
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").write_text(SHOP)
    (folder / "shop" / "back.py").write_text(BACK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    assert "shop" not in sys.modules, "reading a signature imported the module"


def names(target: str) -> dict[str, bool]:
    """Parameter -> whether it is required."""
    return {name: item.required for name, item in signature(target).parameters.items()}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("shop.Plain", {}),
        ("shop.Made", {"one": True, "two": False}),
        ("shop.Child", {"one": True, "two": False}),
        ("shop.Own", {"three": True}),
        ("shop.Own.load", {"path": True}),
        ("shop.Own.join", {"a": True, "b": False}),
        ("shop.Row", {"left": True, "right": False, "made": False, "asked": True}),
        ("shop.LongRow", {"left": True, "right": False, "made": False, "asked": True, "tail": True}),
        ("shop.both", {"a": True, "b": True}),
        ("shop.starred", {"x": True}),
        ("shop.back.starred", {"x": True}),
        ("shop.tool", {"slow": True}),
    ],
)
def test_reads_parameters(target: str, expected: dict[str, bool]) -> None:
    assert names(target) == expected
    assert not signature(target).open


@pytest.mark.fast
@pytest.mark.parametrize(
    "target", ["shop.Shown", "shop.Alias", "shop.Foreign", "shop.Decorated", "math.sqrt", "shop.T"]
)
def test_is_open_where_more_may_be_accepted_or_nothing_is_known(target: str) -> None:
    assert signature(target).open


@pytest.mark.fast
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("shop.Mode", TargetNotFound, "did you mean 'shop.Made'"),
        ("shop.bakc.starred", TargetNotFound, "did you mean 'shop.back'"),
        ("no_such_package.X", PackageNotFound, "no_such_package"),
        ("Word", TargetNotFound, "not a dotted name"),
        ("shop..X", TargetNotFound, "not a dotted name"),
    ],
)
def test_says_what_is_missing(target: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        signature(target)


@pytest.mark.fast
def test_lineage_follows_bases() -> None:
    assert list(lineage("shop.LongRow")) == ["shop.LongRow", "shop.Row"]
    assert list(lineage("shop.Alias")) == ["shop.back.Hidden"]


@pytest.mark.parametrize("target", TARGETS)
def test_equals_the_imported_signature(target: str) -> None:
    module, _, name = target.rpartition(".")
    imported = inspect.signature(getattr(import_module(module), name)).parameters
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    expected = {key: item.default is item.empty for key, item in imported.items() if item.kind not in variadic}
    rest = [item.annotation for item in imported.values() if item.kind is item.VAR_KEYWORD]
    unpacked = [get_args(annotation)[0] for annotation in rest if get_origin(annotation) is Unpack]
    for row in unpacked:
        expected |= {key: key in row.__required_keys__ for key in get_type_hints(row)}
    assert names(target) == expected
    assert signature(target).open == (len(rest) > len(unpacked))


@pytest.mark.fast
def test_reads_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target deep in a large package costs a few files, not the package."""
    read: list[Path] = []
    text = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or text(self))  # type: ignore[func-returns-value]
    signature("torch.optim.SGD")
    assert len(read) <= 3
