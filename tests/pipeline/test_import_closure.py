"""The closure follows every way of importing, and its digest is of the code and of nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.pipeline.import_closure import Find, closure, digest

Make = Callable[..., Any]

pytestmark = pytest.mark.fast


def write(folder: Path, files: dict[str, str]) -> Find:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def find(module: str) -> Path | None:
        stem = folder.joinpath(*module.split("."))
        return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)

    return find


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 1", "x = '1'"),
        ("x = 'a'", "x = b'a'"),
        ("x = 'a'", "x = a"),
        ("x = 0.0", "x = -0.0"),
        ("x = a + b", "x = b + a"),
        ("x = a - b - c", "x = a - (b - c)"),
        ("x = (a, b)", "x = [a, b]"),
        ("f(a, b)", "f(a)(b)"),
        ("f(a, b=c)", "f(a, c)"),
        ("f(a=b)", "f(**{a: b})"),
        ("{a: b, **c}", "{**c, a: b}"),
        ("def f(a, /, b): g()", "def f(a, b): g()"),
        ("def f(*, a=None, b): g()", "def f(*, a, b=None): g()"),
        ("if a:\n    f()\n    g()", "if a:\n    f()\ng()"),
        ("if a:\n    f()\nelse:\n    g()", "if a:\n    f()\nelif g():\n    f()"),
        ("for a in b: f()", "async def f():\n    async for a in b: f()"),
        ("global a\na = 1", "global b\na = 1"),
        ("from a import b", "from a import b as c"),
        ("from a import b", "from .a import b"),
        ("f'{a}'", "f'{a!r}'"),
        ("x = f'{a}'", "x = f'{a:4}'"),
        ("x: int = 1", "x: float = 1"),
        ("@a\ndef f(): g()", "def f(): g()"),
        ("del Pass", "del a, Pass"),
    ],
)
def test_other_code_has_another_digest(one: str, other: str, tmp_path: Path) -> None:
    codes = []
    for text in (one, other):
        (tmp_path / "module.py").write_text(text)
        codes.append(digest({"module": tmp_path / "module.py"}))
    assert codes[0] != codes[1]


def test_every_way_of_importing_is_followed(tmp_path: Path) -> None:
    find = write(
        tmp_path,
        {
            "house/__init__.py": "",
            "house/room/__init__.py": "from house.shelf import Book",
            "house/room/deep/__init__.py": "",
            "house/room/deep/one.py": "import house.cellar\nimport torch, other\nfrom house.room import two, Book",
            "house/room/two.py": "def f():\n    from .deep.three import g\n    return g",
            "house/room/deep/three.py": "from ... import attic as top\nfrom . import four",
            "house/room/deep/four.py": "try:\n    from house.stairs import *\nexcept ImportError:\n    pass",
            "house/room/deep/unused.py": "",
            "house/stairs.py": "import house.room.deep.one  # a circle",
            "house/shelf.py": "class Book: ...",
            "house/cellar/__init__.py": "",
            "house/cellar/unused.py": "",
            "house/attic.py": "import house.excluded",
            "house/excluded/__init__.py": "import house.room.deep.unused",
            "other.py": "",
        },
    )
    found = closure(["house.room.deep.one.Thing.method"], packages={"house"}, without={"house.excluded"}, find=find)
    assert list(found) == sorted(
        ["house", "house.attic", "house.cellar", "house.room", "house.room.deep", "house.room.deep.four",
         "house.room.deep.one", "house.room.deep.three", "house.room.two", "house.shelf", "house.stairs"]
    )  # fmt: skip
    assert closure(["torch.optim.AdamW", "house.excluded.x"], packages={"house"}, without={"house"}, find=find) == {}


def test_what_lies_below_an_excluded_room_is_excluded(tmp_path: Path) -> None:
    find = write(tmp_path, {"a/__init__.py": "", "a/b/__init__.py": "", "a/b/c.py": "", "a/bc.py": ""})
    assert list(closure(["a.b.c", "a.bc"], packages={"a"}, without={"a.b"}, find=find)) == ["a", "a.bc"]


def test_a_file_that_a_module_names_is_part_of_it(tmp_path: Path) -> None:
    find = write(tmp_path, {"a.py": "SOURCE = 'kernel.cu'", "kernel.cu": "1", "other.cu": "1"})
    before = digest(closure(["a"], packages={"a"}, find=find))
    (tmp_path / "other.cu").write_text("2")
    assert digest(closure(["a"], packages={"a"}, find=find)) == before
    (tmp_path / "kernel.cu").write_text("2")
    assert digest(closure(["a"], packages={"a"}, find=find)) != before
