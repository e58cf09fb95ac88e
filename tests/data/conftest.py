"""A tiny standard library and site-packages instead of the machine's own, and a tiny table."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slimexp.data.library
from slimexp.data.files import Files
from slimexp.data.table import Columns, Splits

COLUMNS = {"source": "source", "target": "target", "text": "text", "label": "label"}
SPLITS: dict[str, Any] = {
    "train": "train",
    "validation": "validation",
    "test": "test",
    "held_out": 0.1,
    "max_train": None,
    "max_held_out": None,
    "seed": 0,
}
SENTENCE = "The {word} of module {module} returns whatever the caller asked it for."
WORDS = ("parser", "reader", "writer", "encoder", "scanner", "cursor")


def module_source(module: str) -> str:
    functions = (
        f'def {word}(value):\n    """{SENTENCE.format(word=word, module=module)}"""\n'
        f"    total_of_{module}_{word} = value + 1\n    return total_of_{module}_{word} * 2\n\n"
        for word in WORDS
    )
    return f'"""Everything about {module} that people ever wanted to know."""\n\n' + "\n".join(functions)


@pytest.fixture
def make_module() -> Callable[[str], str]:
    """Module name -> a source file of its own with prose in it."""
    return module_source


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a standard library of sixty real module names, with an empty site-packages beside it."""
    root = tmp_path / "lib"
    root.mkdir()
    for module in sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))[::3][:60]:
        (root / f"{module}.py").write_text(module_source(module))
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(slimexp.data.library, "library_root", lambda: root)
    monkeypatch.setattr(slimexp.data.library, "package_roots", lambda: [tmp_path / "site-packages"])
    return root


@pytest.fixture
def rows() -> list[dict[str, object]]:
    """Sixty rows that serve every task."""
    return [
        {
            "source": f"teh row nubmer {i}",
            "target": f"the row number {i}",
            "text": f"row {i} is here",
            "label": "ab"[i % 2],
        }
        for i in range(60)
    ]


@pytest.fixture
def write_jsonl() -> Callable[[Path, list[dict[str, object]]], Path]:
    def write(path: Path, rows: list[dict[str, object]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def write_parquet() -> Callable[[Path, list[dict[str, Any]]], None]:
    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)

    return write


@pytest.fixture
def files() -> Callable[..., Files]:
    """Path -> the corpus of a file or folder, with settings of columns and splits."""

    def make(
        path: Path, task: Any = "seq2seq", *, passage: int | None = None, columns: Any = (), **splits: Any
    ) -> Files:
        return Files(
            path=str(path),
            task=task,
            columns=Columns(**(COLUMNS | dict(columns))),
            splits=Splits(**(SPLITS | splits)),
            passage=passage,
        )

    return make
