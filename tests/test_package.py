"""What is released works where no checkout is: the sdist and the wheel, in an environment of their own.

    make package

It installs from the package index, so it runs only when asked for.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[1]
FOLDERS = ("conf", "docs", "hydra_plugins", "notebooks", "slimexp", "sweeps", "tests")
FILES = {".gitignore", "LICENSE", "Makefile", "PKG-INFO", "pyproject.toml", "zensical.toml"}
FILES |= {"CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"}
BUILT = ("__pycache__", ".ipynb_checkpoints")
TESTED_BY = ("hypothesis", "pytest")


class Released(NamedTuple):
    sdist: Path
    wheel: Path


def run(command: list[str | Path], folder: Path) -> str:
    """What a command prints in ``folder``, which knows nothing of the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files(folder: str) -> set[str]:
    """Paths of what is in a folder of the checkout, without what Python and Jupyter leave there."""
    paths = (path.relative_to(ROOT) for path in ROOT.joinpath(folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if not set(path.parts) & set(BUILT)}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Both built, the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", folder, ROOT], folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Released(sdist, wheel)


@pytest.fixture(scope="module")
def unpacked(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(released.sdist) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


@pytest.fixture(scope="module")
def python(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel, what it depends on, and what tests need."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", folder], folder)
    interpreter = folder / "bin" / "python"
    torch = f"torch=={version('torch').partition('+')[0]}"  # an open range may be another build, of gigabytes
    run([interpreter, "-m", "pip", "install", "--quiet", torch, released.wheel, *TESTED_BY], folder)
    return interpreter


def test_the_wheel_has_all_that_runs(released: Released) -> None:
    names = zipfile.ZipFile(released.wheel).namelist()
    conf = {f"slimexp/{name}" for name in files("conf")}
    assert {name for name in names if ".dist-info/" not in name} == files("slimexp") | files("hydra_plugins") | conf


def test_the_sdist_has_sources_and_tests_and_nothing_that_was_run(unpacked: Path) -> None:
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    expected = FILES.union(*map(files, FOLDERS))
    assert found == {name for name in expected if not name.startswith("tests/benchmarks/")}


def test_the_main_job_runs_from_another_folder(python: Path, tmp_path: Path) -> None:
    printed = run([python, "-m", "slimexp.train", "+experiment=distill_t5", "pipeline.distill.steps=2"], tmp_path)
    (artifact,) = tmp_path.glob("runs/distill_t5/distill-*/artifact")
    assert any(line.endswith(f"-> {artifact.relative_to(tmp_path)}") for line in printed.splitlines())
    assert (artifact / "model.safetensors").is_file()
    program = "import slimexp; from slimexp.config.composition import CONF_DIR; print(slimexp.__file__, CONF_DIR)"
    where = run([python, "-c", program], tmp_path)
    assert all(Path(one).is_relative_to(python.parents[1]) for one in where.split())


def test_tests_of_the_sdist_need_no_checkout(python: Path, unpacked: Path) -> None:
    run([python, "-m", "pytest", "--quiet", "--collect-only", "-m", ""], unpacked)  # each imports what it tests
    assert " passed" in run([python, "-m", "pytest", "--quiet", "-m", "fast"], unpacked)
