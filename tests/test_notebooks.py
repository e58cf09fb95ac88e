"""Notebooks run from their first cell to their last, in small, and carry no outputs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks are run by the packages of slimexp[dev]")
pytest.importorskip("nbclient", reason="notebooks are run by the packages of slimexp[dev]")

from jupyter_client.manager import KernelManager  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = ["pipeline.distill.cut.calibration_batches=1", "pipeline.distill.batch_size=2"]
BRIEF = ["search.graded=2", "pipeline.distill.batch_size=2"]
SMALL: dict[str, dict[str, Any]] = {
    "01_first_run": {"STEPS": 2, "ROWS": 2, "MORE": QUICK},
    "02_read_a_front": {},
    "03_where_to_prune": {"ROWS": 1, "SHIFTS": [0, 0.05]},
    "04_temperature": {"PASSAGES": 1, "STEPS": 2, "ROWS": 2, "MORE": QUICK},
    "05_from_budget_to_model": {
        "BUDGETS": [6],
        "ROWS": 1,
        "STEPS": 2,
        "TESTED": 2,
        "MORE": ["model.max_length=64", "search.bits=[16,4]", "search.solutions=2", "search.steps=1", *BRIEF],
    },
}

LONG = {"03_where_to_prune", "04_temperature", "05_from_budget_to_model"}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One for all, so that torch is imported once; each notebook starts with an empty namespace."""
    manager = KernelManager(
        kernel_name="python3", transport="ipc", ip=str(tmp_path_factory.mktemp("kernel") / "socket")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        patch.delenv("MPLBACKEND", raising=False)  # what a notebook shows is its own
        manager.start_kernel(cwd=str(ROOT / "notebooks"))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, as a reader has: each must find its own among the others' records."""
    return tmp_path_factory.mktemp("runs")


def test_every_notebook_is_tried() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(SMALL)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else []) for path in NOTEBOOKS],
)
def test_it_runs_to_its_end(path: Path, kernel: KernelManager, runs: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (first,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in {**SMALL[path.stem], **({"RUNS": str(runs)} if "RUNS" in first.source else {})}.items():
        assert f"\n{name} = " in f"\n{first.source}", f"{name} is no parameter of {path.name}"
        first.source += f"\n{name} = {value!r}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f\n__spec__ = None"))  # spawned processes ask for it
    NotebookClient(notebook, km=kernel, timeout=120).execute(cleanup_kc=False)
    shown = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/png" in shown


@pytest.mark.fast
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), "run nbstripout --keep-id on it"
        assert cell["metadata"] in ({}, {"tags": ["parameters"]})


@pytest.mark.fast
def test_the_records_are_of_no_machine() -> None:
    text = (ROOT / "notebooks" / "front_t5.jsonl").read_text()
    assert not [word for word in ('"/', "=/", "~/") if word in text]
