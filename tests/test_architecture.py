"""The house stands: imports point down, siblings do not know each other, and the config layer stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "slimexp"
CONF = PACKAGE.parent / "conf"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400

# A room or module may import those of lower rows only. Rows within one layer order its parts.
LAYERS = [
    ["schedule", "file", "host"],
    ["config", "weight"],
    ["record", "kernel"],
    ["analysis", "importance", "quantizer", "loss"],
    ["pattern", "allocation", "rounding", "decode", "format"],
    ["data", "logger"],
    ["model"],
    ["smoothing", "calibration"],
    ["cut"],
    ["budget", "measure", "artifact"],
    ["technique", "page"],
    ["pipeline", "stopper"],
    ["sweeper"],
    ["train", "evaluate", "report", "select", "clean", "export"],
]
RANK = {word: rank for rank, row in enumerate(LAYERS) for word in row}
# What conf chooses is built from conf, never imported by name from another room; this one is also a base class.
BASES = {"technique.finetune", "cut.keep"}
BASES |= {"rounding.gptq", "smoothing.awq", "allocation.sensitivity", "allocation.mixed_precision"}
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


def imports(path: Path) -> Iterator[str]:
    """Modules of slimexp that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("slimexp."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            if node.module == "slimexp":
                yield from (f"slimexp.{alias.name}" for alias in node.names if alias.name != "__version__")
            elif node.module and node.module.startswith("slimexp."):
                submodules = [alias.name for alias in node.names if exists(f"{node.module}.{alias.name}")]
                yield from ([f"{node.module}.{name}" for name in submodules] or [node.module])


def exists(module: str) -> bool:
    stem = PACKAGE.parent.joinpath(*module.split("."))
    return stem.with_suffix(".py").is_file() or (stem / "__init__.py").is_file()


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
@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_lightning_is_spelt_one_way(path: Path) -> None:
    spelt = [
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    ]
    assert not [name for name in spelt if name.split(".")[0] == "lightning"], "mixing the two gives two class trees"


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
