"""A conf folder, a package and a program of these tests' own, so that they stand while those of slimexp change."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from slimexp.config import composition
from slimexp.config.check import check
from slimexp.config.command_line import main

COUNTER = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:  # these tests need no torch
    from slimexp.technique.finetune import Finetune
else:
    Finetune = object

class Shrink(Finetune):
    def __init__(self, *, steps: int, rate: float = 0.1, tool=None): ...

class Tool:
    def __init__(self, *, size: int, sharp: bool, name: str | None = None):
        if size < 0:
            raise ValueError(f"size must be >= 0, got {size}")
        self.size, self.given = size, name

class Whatever:
    def __init__(self, **anything): ...
"""
FILES = {
    "config": """
        defaults: [schema, model: tool, data: null, pipeline: null, _self_, override hydra/job_logging: none,
                   override hydra/hydra_logging: none]
        seed: 0
        runs: {runs}
        name: run
        save_dtype: bfloat16
        resume: true
        checkpoint: {{every_steps: 1, every_seconds: 1, share: null}}
        trainer: null
        data: null
        hydra: {{run: {{dir: "${{runs}}"}}, sweep: {{dir: "${{runs}}", subdir: .}}, output_subdir: null}}
        """,
    "model/tool": "{_target_: counter.Tool, size: 1, sharp: true}",
    "model/unnamed": "{_target_: counter.Tool, size: '???', sharp: true}",
    "technique/shrink": "{_target_: counter.Shrink, steps: 3}",
    "pipeline/shrink": "{defaults: [/technique@shrink: shrink]}",
    "experiment/shrink_tool": "# @package _global_\n{defaults: [override /pipeline: shrink], name: shrink_tool}",
    "hydra/sweeper/pareto": "{_target_: counter.Tool, workers: 2}",
    "experiment/broken": "# @package _global_\n{pipelin: 1}",
}


SITE = """
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


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small conf folder with components of its own, so that these tests stand while conf/ changes."""
    folder = tmp_path_factory.mktemp("conf")
    runs = tmp_path_factory.mktemp("work") / "runs"  # not a group beside the others
    for name, text in FILES.items():
        path = (folder / name).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(runs=runs) if name == "config" else text)
    (folder / "counter.py").write_text(COUNTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(composition, "CONF_DIR", folder)
        patch.setenv("SLIMEXP_PACKAGES", "counter")
        patch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; so it is put back
        yield folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small package whose source is read, and which no test imports."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").write_text(SITE)
    (folder / "shop" / "back.py").write_text(BACK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    assert "shop" not in sys.modules, "reading a signature imported the module"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a task as a program; its exit status and what it wrote to stderr."""

    def run(*arguments: str, task: Callable[[DictConfig], Any] = check, config_name: str = "config") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        status = 0
        try:
            main(task, config_name)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr().err

    return run
