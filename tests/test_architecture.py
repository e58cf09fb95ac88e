"""The house stands: imports point down, siblings do not know each other, and the config layer stays light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "slimexp"
CONF = PACKAGE.parent / "conf"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 320  # lines of a file
LONGEST_FUNCTION = 60  # lines; Triton compiles a kernel from one function
HALL = {"__init__", "artifact", "schedule"}  # modules outside of rooms, beside the mains
TARGET = re.compile(r"_target_: (slimexp\.[\w.]+)")

# A room or module may import those of lower rows only. Rows within one layer order its parts.
LAYERS = [
    ["schedule", "file", "host"],
    ["config", "weight"],
    ["record", "kernel"],
    ["importance", "quantizer", "loss"],
    ["pattern", "allocation", "rounding", "decode", "serialization"],
    ["data"],
    ["analysis"],  # of records, and of rows that were graded
    ["logger"],
    ["architecture"],
    ["model"],
    ["smoothing", "calibration"],
    ["cut", "teacher_cache"],
    ["budget", "measure", "artifact", "completion"],
    ["technique", "page", "format"],
    ["pipeline", "stopper"],
    ["sweeper"],
    ["candidate"],
    ["train", "evaluate", "report", "clean", "export", "search"],
    ["select"],  # it exports
]
RANK = {word: rank for rank, row in enumerate(LAYERS) for word in row}
# What conf chooses is built from conf, never imported by name from another room; this one is also a base class.
BASES = {"technique.finetune", "cut.keep"}
HEAVY = {"torch", "transformers", "pytorch_lightning", "datasets", "wandb", "torchmetrics", "matplotlib", "lm_eval"}
HEAVY |= {"moocore", "optuna"}
LIGHT = ["config.check", "config.binding", "config.signature", "record.record", "host.console", "host.hub", "schedule"]
LIGHT += ["analysis.pareto", "train", "report"]


def word(module: str) -> str:
    """``slimexp.loss.kl`` -> ``loss``."""
    return module.split(".")[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All of a file's syntax tree; each file is asked about by several tests."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Modules of slimexp that a file imports, anywhere in it."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("slimexp."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            if node.module == "slimexp":
                yield from (f"slimexp.{alias.name}" for alias in node.names if alias.name != "__version__")
            elif node.module and node.module.startswith("slimexp."):
                submodules = [alias.name for alias in node.names if exists(f"{node.module}.{alias.name}")]
                yield from ([f"{node.module}.{name}" for name in submodules] or [node.module])


def libraries(path: Path) -> set[str]:
    """Packages that a file imports, anywhere in it."""
    names = [alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes(path) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def file_of(module: str) -> Path:
    stem = PACKAGE.parent.joinpath(*module.split("."))
    return found if (found := stem.with_suffix(".py")).is_file() else stem / "__init__.py"


def exists(module: str) -> bool:
    return file_of(module).is_file()


def is_chosen_by_conf(module: str) -> bool:
    _, *room_and_file = module.split(".")
    return len(room_and_file) == 2 and CONF.joinpath(*room_and_file).with_suffix(".yaml").is_file()


@pytest.mark.fast
@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"], ids=module_name
)
def test_imports_point_down(path: Path) -> None:
    here = word(module_name(path))
    assert here in RANK, f"{path.name}: name the layer of '{here}' in LAYERS"
    for there in map(word, imports(path)):
        assert there == here or RANK[there] < RANK[here], (
            f"{module_name(path)} imports '{there}', which is not below it"
        )


@pytest.mark.fast
@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_what_conf_chooses_is_not_imported_by_name(path: Path) -> None:
    """Not from another room, and not by its siblings: a technique is handed its losses, a loss knows no other."""
    strangers = [name for name in imports(path) if is_chosen_by_conf(name)]
    assert [name for name in strangers if name.removeprefix("slimexp.") not in BASES] == []


@pytest.mark.fast
@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_file_ends_before_its_reader_tires(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.fast
@pytest.mark.parametrize("path", [path for path in MODULES if not path.stem.startswith("triton_")], ids=module_name)
def test_a_function_ends_before_its_reader_tires(path: Path) -> None:
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


@pytest.mark.fast
def test_every_module_has_a_room() -> None:
    """Only mains, which a person starts, and what no room is for lie in the package itself."""
    mains = {*LAYERS[-2], *LAYERS[-1]}
    assert {path.stem for path in PACKAGE.glob("*.py")} <= HALL | mains


@pytest.mark.fast
@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_lightning_is_spelt_one_way(path: Path) -> None:
    assert "lightning" not in libraries(path), "mixing the two gives two class trees"


@pytest.mark.fast
@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_tools_of_tests_stay_in_tests(path: Path) -> None:
    """What is patched in production has an option, or a context manager of its own that says why there is none."""
    assert libraries(path) & {"unittest", "pytest"} == set()


@pytest.mark.parametrize("module", LIGHT)
def test_importing_is_light(module: str) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, slimexp.{module}; print(*sys.modules)"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert HEAVY & set(loaded) == set()


# What makes tables, plots and pages of records: of use when a report is made, and not while models are.
REPORTING = {"analysis", "page", "report", "select"}
REPORTING_MODULES = {"slimexp.logger.wandb_report", "slimexp.logger.wandb_log"}


def is_reporting(module: str) -> bool:
    return word(module) in REPORTING or module in REPORTING_MODULES


@pytest.mark.fast
def test_training_and_measuring_have_no_way_to_reports() -> None:
    """Nor by an import within a function, or by a component that conf names."""
    conf = {target for path in CONF.rglob("*.yaml") for target in TARGET.findall(path.read_text(encoding="utf-8"))}
    reached: set[str] = set()
    waiting = ["slimexp.train", "slimexp.pipeline.pipeline", "slimexp.evaluate"]
    waiting += [target.rpartition(".")[0] for target in conf if not target.startswith("slimexp.sweeper.")]
    while waiting:
        if (module := waiting.pop()) not in reached and exists(module):
            reached.add(module)
            waiting += imports(file_of(module))
    assert {"slimexp.logger.wandb", "slimexp.technique.prune", "slimexp.measure.latency"} <= reached
    assert set(filter(is_reporting, reached)) == set()


def test_training_imports_no_reports() -> None:
    commands = "slimexp.train, slimexp.pipeline.pipeline, slimexp.evaluate, slimexp.logger.wandb"
    program = f"import sys, {commands}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "slimexp.pipeline.preflight" in loaded
    assert [name for name in loaded if name.startswith("slimexp.") and is_reporting(name)] == []
