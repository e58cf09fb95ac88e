"""Every command, setting, Python block and link of the documentation is right as it stands.

Commands stand in ``bash`` blocks or in backticks. A word in capitals (``MODEL``, ``NAME``) stands for something of the
reader's: as a value it is left as it is, for nothing here loads what it names, and as the option of a config group it
stands for the first one of the group. ``...`` stands for what was left out.
"""

import argparse
import ast
import csv
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import hydra
import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from slimexp import clean, report, select
from slimexp.config import allowlist
from slimexp.config.build import ConfigError, build
from slimexp.config.check import check
from slimexp.config.composition import CONF_DIR, chosen, compose, options
from slimexp.config.schema import Evaluation, Run, Search
from slimexp.export import settings as export_settings
from slimexp.page import server
from slimexp.sweeper.pool import local
from slimexp.sweeper.space import Space
from slimexp.sweeper.sweep import Sweep

ROOT = Path(__file__).parents[1]
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
        if (ROOT / name).is_file()
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "slimexp" / "zoo").glob("*/README.md")),
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.MULTILINE)
SETTING = re.compile(r"([+]{0,2}|~)[A-Za-z_][\w./]*(@[\w.]+)?=.*|~[a-z_][\w.]*")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+")
PROGRAMS = ("make", "nvidia-cuda-mps-control", "pip", "pytest", "python", "ray", "sh", "source", "wandb")
OF_OTHERS = {  # commands of other programs, which only a person who knows these can check
    "nvidia-cuda-mps-control -d",
    "ray start --head",
    "source .venv/bin/activate",
    "trackio show --project slimexp",
    "wandb agent",
    "wandb sweep",
    ".venv/bin/pre-commit install",
    "wandb sync",
}


class Passage(NamedTuple):
    """A command, a setting or a block, and where it stands."""

    page: Path
    text: str


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    return (text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages)


def words(text: str) -> list[str]:
    return shlex.split(text, comments=True)


def spans(page: Path) -> Iterator[str]:
    """What stands in backticks and can be split into words."""
    for text in SPAN.findall(prose(page)):
        try:
            if words(text):
                yield " ".join(text.split())
        except ValueError:  # a quotation mark of its own
            continue


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page, "bash", "sh", "shell", "console"):
        yield from filter(words, block.replace("\\\n", " ").splitlines())
    yield from (text for text in spans(page) if words(text)[0] in PROGRAMS and len(words(text)) > 1)


def settings(page: Path) -> Iterator[str]:
    yield from (text for text in spans(page) if all(map(SETTING.fullmatch, words(text))))


def collected(find: Callable[[Path], Iterator[str]]) -> list[Any]:
    """One parameter per distinct text, named by the first page that has it."""
    seen: dict[str, Path] = {}
    for page in PAGES:
        for text in find(page):
            seen.setdefault(" ".join(text.split()), page)
    return [
        pytest.param(Passage(page, text), id=f"{page.relative_to(ROOT).as_posix()}: {text}")
        for text, page in seen.items()
    ]


COMMANDS = collected(commands)
SETTINGS = collected(settings)


# Commands


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with the records of a small sweep, published points, and nothing that listens or uploads."""
    rows = [json.loads(line) for line in (ROOT / "notebooks" / "front_t5.jsonl").read_text().splitlines()]
    for row in rows:
        row["metrics"] |= {"latency_ratio": 1.0, "onnx_logit_gap": 1e-6, "onnx_forward_ms": 4.0}
    for name in ("runs/records.jsonl", "notebooks/front_t5.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["label", "disk_mb", "cer", "latency_ratio"], ["published", "4.0", "0.03", "0.9"]])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "watch", lambda *_, **__: None)
    return tmp_path


@pytest.mark.parametrize("passage", COMMANDS)
def test_a_command_is_right(passage: Passage, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [word for word in words(passage.text) if word != "..."]
    hold(given, monkeypatch)


def hold(given: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold a command against the program that it calls."""
    while given and re.fullmatch(r"[A-Z_]+=.*", given[0]):
        check_variable(given[0])
        given = given[1:]
    program, *rest = given
    if " ".join(given) in OF_OTHERS:
        return
    if program == "python":
        flag, module, *rest = rest
        assert flag == "-m", f"only modules are run here, got {' '.join(given)}"
        run_module(module, rest, monkeypatch)
        return
    {"make": hold_make, "pip": hold_pip, "pytest": hold_pytest, "sh": hold_script}[program](rest)


def run_module(module: str, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "slimexp.train":
        hold_training(given, monkeypatch)
    elif module == "slimexp.evaluate":
        cfg = compose(overrides(given), "evaluate")
        check(cfg, schema=Evaluation)
        build_all(cfg, "measure")
    elif module == "slimexp.search":
        cfg = compose(overrides(given), "search")
        check(cfg, schema=Search)
        build_all(cfg, "pipeline", "measure")
    elif module == "slimexp.export":
        name, _, values = export_settings(given[1:])
        assert values.keys() <= OmegaConf.load(CONF_DIR / "format" / f"{name}.yaml").keys()
    elif module in ("slimexp.report", "slimexp.select", "slimexp.clean"):
        hold_reader(module, given, monkeypatch)
    else:
        package = module.partition(".")[0]
        assert package in ("benchmarks", "sweeps"), f"{module} is no program of this repository"
        hold_options(module, given, monkeypatch)


def overrides(given: Sequence[str]) -> list[str]:
    """What is left of a command line of Hydra without its flags, which must be known."""
    parser = get_args_parser()
    parser.exit_on_error = False
    return list(parser.parse_args(given).overrides)


def hold_training(given: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = get_args_parser().parse_args(given)
    if flags.help:
        return
    if not flags.multirun:
        checked(compose(flags.overrides))
        return
    of_hydra = [word for word in flags.overrides if word.startswith("hydra")]
    swept = [word for word in flags.overrides if not word.startswith("hydra")]
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        node = hydra.compose("config", [*of_hydra, *Space.parse(swept).fixed], return_hydra_config=True).hydra
    assert list(allowlist.faults(node, CONF_DIR, "hydra")) == []
    if node.runtime.choices["hydra/sweeper"] == "pareto":
        monkeypatch.setattr(Sweep, "run", lambda self: [])  # it is planned, journal and all
        sweeper = hydra.utils.instantiate(node.sweeper)
        sweeper.composed, pool = compose, sweeper.settings["pool"]
        signature(pool.func).bind_partial(**pool.keywords)
        sweeper.settings["pool"] = local.Pool  # others need packages and machines
        sweeper.sweep(swept)
        return
    if node.runtime.choices["hydra/launcher"] != "basic":
        hydra.utils.instantiate(node.launcher)
    space = Space.parse(swept)
    space.check_grid(None)
    for values in space.singles():
        checked(compose(space.overrides(values)))


def checked(cfg: DictConfig) -> None:
    check(cfg)
    build_all(cfg, "pipeline", "measure", "callback")


def build_all(cfg: DictConfig, *groups: str) -> None:
    """Construct the components of some groups: only their constructors know which values can be."""
    for group in groups:
        for node in chosen(cfg[group]).values():
            build(node)


def hold_reader(module: str, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = {"report": report, "select": select, "clean": clean}[module.rpartition(".")[2]]
    if "--wandb" in given:
        published: list[Any] = []
        monkeypatch.setattr("slimexp.logger.wandb_report.publish", lambda *found: published.append(found))
    if "--days" in given and "N" in given:
        given = [word.replace("N", "7") for word in given]
    monkeypatch.setattr(select, "_export", lambda *_: 0)  # the models of the records are elsewhere
    status = program.main(given)
    assert status == 0 or (program is select and status == select.NONE_FITS)
    assert "--wandb" not in given or len(published) == 1


EXPERIMENTS = {"benchmarks.distill_smollm2": "distill_smollm2"}  # of benchmarks that have no such option


class Parsed(Exception):
    """A program has read its options; nothing further is run."""


def hold_options(module: str, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold options against the parser of a program, and what is left to it against the configs."""
    real, left = argparse.ArgumentParser.parse_known_args, []

    def refuse_nothing(parser: argparse.ArgumentParser, *_: Any) -> Any:
        known, words = real(parser)
        experiment = getattr(known, "experiment", EXPERIMENTS.get(module))
        if words and experiment:  # what a benchmark puts before them
            left.append(f"+experiment={experiment}")
        left.extend(words)
        raise Parsed

    def refuse_unknown(parser: argparse.ArgumentParser, *_: Any) -> Any:
        if stray := real(parser)[1]:
            parser.error(f"unrecognized arguments: {stray}")
        raise Parsed

    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [module, *given])
        patch.setattr(argparse.ArgumentParser, "parse_known_args", refuse_nothing)
        patch.setattr(argparse.ArgumentParser, "parse_args", refuse_unknown)
        with pytest.raises(Parsed):
            found.main()
    if left:
        hold_setting(left)


def hold_make(given: Sequence[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in given:
        if "=" in word:
            check_variable(word)
        else:
            assert re.search(rf"^{re.escape(word)}:", text, re.MULTILINE), f"the Makefile has no target '{word}'"


def hold_pip(given: Sequence[str]) -> None:
    verb, *packages = given
    assert verb == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    dependencies = re.findall(r"(?m)^[\w-]+", "\n".join(chain(project["dependencies"], *extras.values())))
    for name in packages:
        match = re.fullmatch(r"(?:slimexp|\.)(?:\[(.+)\])?", name)
        assert match or name in dependencies, f"{name} is neither slimexp nor one of its dependencies"
        assert not match or not match[1] or set(match[1].split(",")) <= set(extras), f"slimexp has no extra of {name}"


def hold_pytest(given: Sequence[str]) -> None:
    for word in given:
        assert word.startswith("-") or (ROOT / word).exists(), f"{word} does not exist"


def hold_script(given: Sequence[str]) -> None:
    script, *arguments = given
    path = ROOT / script
    known = {file.stem for file in path.parent.glob("*.txt")}  # requirements of each peer
    assert all(word in known or word in path.read_text() for word in arguments), f"{script} knows no {arguments}"


def check_variable(word: str) -> None:
    """Of the environment or of ``make``: something must read it."""
    name = word.partition("=")[0]
    readers = [ROOT / "Makefile", *(ROOT / "slimexp").rglob("*.py")]
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in readers), f"nothing reads {name}"


# Settings in the text


OF_SEARCH = ("budget.", "search.", "hydra/sweeper/pool@search.")
BASES: dict[str, list[str]] = {  # what a setting may stand beside, by the beginning of its key
    **{key: ["+experiment=search_llama"] for key in OF_SEARCH},
    "hydra": ["hydra/sweeper=pareto", "+experiment=front_t5"],
    "callback.stopper": ["+experiment=front_t5", "+stopper@callback.stopper=asha"],
    "baseline": ["+experiment=prune_t5", "model@baseline=pretrained"],
    "measure.lm_eval": ["+experiment=prune_llama", "measure=[lm_eval]"],
    "model.path": ["+experiment=prune_t5", "model=pretrained"],
    "data.columns": ["+experiment=prune_t5", "data=files"],
    "data.task": ["+experiment=prune_t5", "data=files"],
    "data.splits": ["+experiment=prune_t5", "data=files"],
    "data.passage": ["+experiment=prune_t5", "data=files"],
    "pipeline.distill.cut": ["+experiment=distill_t5"],
    "pipeline.distill.losses.hidden": ["+experiment=distill_t5"],
    "pipeline.distill.teacher": ["+experiment=distill_t5", "+model@pipeline.distill.teacher=pretrained"],
}


@pytest.mark.parametrize("passage", SETTINGS)
def test_a_setting_is_one(passage: Passage, runs: Path) -> None:
    hold_setting(words(passage.text))


def hold_setting(given: Sequence[str]) -> None:
    """Hold settings that stand alone against a config that has their keys; what they leave open is not missed."""
    composed = [filled(word) for word in given if not is_of_others(word)]
    if not composed:
        return
    of_search = any(word.startswith(OF_SEARCH) for word in composed)
    cfg = compose([*base(composed), *composed], "search" if of_search else "config")
    try:
        check(cfg, schema=Search if of_search else Run)
    except ConfigError as error:
        wrong = [line for line in str(error).splitlines() if "has no value" not in line and "is not chosen" not in line]
        assert not wrong, "\n".join(wrong)


def is_of_others(word: str) -> bool:
    """Whether it is no setting of a config: a variable of the environment, an argument in Python, a budget, a form."""
    key, _, value = word.partition("=")
    if re.fullmatch(r"[A-Z][A-Z_]+", key) and key != "KEY":
        check_variable(word)
        return True
    key = re.sub("^export(?=$|[.])", "format", key)  # of slimexp.select, which hands it on
    if key in ("format", "out") or key.startswith("format."):  # of slimexp.export
        known = [OmegaConf.load(CONF_DIR / "format" / f"{name}.yaml") for name in options("format")]
        assert "." not in key or key == "format.KEY" or any(key.partition(".")[2] in node for node in known), key
        assert key != "format" or value == "NAME" or value in options("format"), value
        return True
    is_budget = re.fullmatch("(max|min)_[a-z_]+", key) is not None  # of slimexp.select
    return key == "KEY" or key.endswith("_METRIC") or is_budget or value in ("True", "False", "None")


def filled(word: str) -> str:
    """With the first option of its group where the option is a placeholder."""
    key, equals, value = word.partition("=")
    if choices := options(key.partition("@")[0].lstrip("+")):
        value = re.sub(r"\bNAME\b", choices[0], value)
    return f"{key}{equals}{value}"


def base(given: Sequence[str]) -> list[str]:
    """A config in which the keys of ``given`` are."""
    keys = [word.partition("=")[0].lstrip("+~") for word in given]
    places = [key.partition("@")[2] or key for key in keys]
    if "experiment" in keys:
        return []
    if "pipeline" in keys:
        return ["model=t5_spelling", "data=spelling"]
    for start, found in BASES.items():
        if any(key.startswith(start) for key in keys):
            return [word for word in found if word.partition("=")[0].lstrip("+") not in keys]
    stages = [match[1] for place in places if (match := re.match(r"pipeline\.(\w+)\.", place))]
    if stages:
        return [f"pipeline={stages[0]}", "model=t5_spelling", "data=spelling"]
    return ["+experiment=prune_t5"]


# Python


PYTHON = [
    pytest.param(Passage(page, text), id=f"{page.relative_to(ROOT).as_posix()}: {number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "python"), 1)
]


@pytest.mark.parametrize("passage", PYTHON)
def test_python_runs(passage: Passage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names no model, or ``ARTIFACT``, is run, on the shipped T5; of others, what they import is there."""
    monkeypatch.chdir(ROOT)
    tree = ast.parse(passage.text)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    if {text for text in texts if PLACEHOLDER.fullmatch(text)} <= {"ARTIFACT"}:
        text = passage.text.replace('"ARTIFACT"', repr(str(ROOT / "slimexp" / "zoo" / "t5_spelling")))
        exec(compile(text, str(passage.page), "exec"), {"__name__": "documentation"})
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), str(passage.page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_component_that_is_shown_as_yaml_names_a_class_of_a_block_beside_it(page: Path) -> None:
    text = page.read_text()
    for block in blocks(page, "yaml"):
        for target in re.findall(r"^_target_: ([\w.]+)$", block, re.MULTILINE):
            assert f"class {target.rpartition('.')[2]}(" in text and target.replace(".", "/").rpartition("/")[0] in text


# Links


def slug(heading: str) -> str:
    """As GitHub makes it of a heading; the site's must be the same, so no two dashes may meet."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\s-]", "", text).replace(" ", "-")


@pytest.mark.fast
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(SPAN.sub("", prose(page))):
        hold_link(page, target)


@pytest.mark.fast
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_links_of_notebooks_lead_somewhere(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
    for target in LINK.findall("\n".join("".join(cell["source"]) for cell in cells)):
        hold_link(path, target)


def hold_link(page: Path, target: str) -> None:
    url = urlsplit(target)
    if url.scheme or url.netloc:
        assert url.scheme in ("http", "https", "mailto") and (url.netloc or url.path), f"{target} is no address"
        return
    there = (page.parent / url.path).resolve() if url.path else page
    assert there.exists(), f"{page.name} links to {target}, which is not there"
    if page.is_relative_to(ROOT / "docs"):
        assert there.is_relative_to(ROOT / "docs"), f"the site has no {target}"
    if url.fragment:
        anchors = [slug(heading) for heading in HEADING.findall(prose(there))]
        assert anchors.count(url.fragment) == 1 and "--" not in url.fragment, f"{there.name} has no #{url.fragment}"


@pytest.mark.fast
def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = re.findall(r'"([\w/]+\.md)"', (ROOT / "zensical.toml").read_text())
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


@pytest.mark.fast
def test_the_api_pages_name_what_there_is() -> None:
    named = [name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)]
    assert len(named) > 10
    for name in named:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), f"there is no module {name}"


# The readme, and what would go unseen


@pytest.mark.fast
def test_the_readme_is_read_at_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.fast
def test_commands_are_found() -> None:
    """A page whose blocks were no longer seen would pass: the main job, and each program, must be among them."""
    texts = [parameter.values[0].text for parameter in COMMANDS]
    for start in ("train +experiment=distill_t5", "train -m", "evaluate", "report", "select", "clean"):
        assert any(text.startswith(f"python -m slimexp.{start}") for text in texts), start
    for start in ("make train", "make docs", "python -m benchmarks.sweep chaos", "pip install", "pytest", "sh "):
        assert any(text.startswith(start) for text in texts), start
    assert not [text for text in texts if "<" in text], "placeholders are words in capitals"
    print(f"{len(COMMANDS)} commands, {len(SETTINGS)} settings, {len(PYTHON)} Python blocks on {len(PAGES)} pages")


WRONG = {  # command -> a part of the error
    "make tset": "no target",
    "make test ARGUMENTS=x": "nothing reads",
    "pip install 'slimexp[rays]'": "no extra",
    "pip install leftpad": "neither",
    "pytest tests/test_nothing.py": "does not exist",
    "sh benchmarks/peers/setup.sh torchbo": "knows no",
    "perl -e 1": "perl",
    "python -m slimexp.trian +experiment=distill_t5": "no program",
    "python -m slimexp.train +experiment=distil_t5": "distil_t5",
    "python -m slimexp.train +experiment=distill_t5 pipeline.distill.step=10": "step",
    "python -m slimexp.train +experiment=prune_t5 pipeline.prune.sparsity=1.5": "sparsity must be",
    "python -m slimexp.train +experiment=distill_t5 --multi": "2",
    "python -m slimexp.train -m +experiment=chain_t5 pipeline.quantize.bits=8,44": "44",
    "python -m slimexp.train -m +experiment=chain_t5 'pipeline.prune.sparsity=interval(0.1,0.7)'": "interval",
    "python -m slimexp.train -m hydra/launcher=jobs +experiment=chain_t5 seed=1,2": "jobs",
    "python -m slimexp.train -m hydra/sweeper=pareto +experiment=front_t5 hydra.sweeper.trails=4 seed=1,2": "trails",
    "python -m slimexp.train -m hydra/sweeper=pareto +experiment=front_t5 hydra.sweeper.workers=0 seed=1,2": "workers",
    "python -m slimexp.train -m hydra/sweeper=pareto hydra/sweeper/pool=ray +hydra.sweeper.pool.addres=auto "
    "+experiment=front_t5 seed=1,2": "addres",
    "python -m slimexp.train -m hydra/sweeper=pareto 'hydra.sweeper.objectives={cr: min}' "
    "+experiment=front_t5 seed=1,2": "'cr'",
    "python -m slimexp.train -m hydra/sweeper=pareto hydra/sweeper/sampler=tpe "
    "+experiment=front_t5 seed=1,2": "trials=N",
    "python -m slimexp.evaluate model=t5_spelling data=spelling 'measure=[sise]'": "sise",
    "python -m slimexp.report runs --zed cer": "2",
    "python -m slimexp.report runs --z accuracy": "2",
    "python -m slimexp.select runs max_sise_mb=4": "2",
    "python -m slimexp.select runs max_size_mb=4 export=onyx": "2",
    "python -m slimexp.clean runs": "2",
    "python -m benchmarks.sweeps chaos": "benchmarks.sweeps",
    "python -m benchmarks.sweep chaos --trails 8": "2",
    "python -m benchmarks.distill_gain trainer=gppu": "gppu",
    "python -m sweeps.workspace --team TEAM": "2",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_command_is_found(text: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((Exception, SystemExit), match=re.escape(WRONG[text])):
        hold(words(text), monkeypatch)


@pytest.mark.parametrize("text", ["pipeline.prune.sparse=0.5", "trainer=gppu", "SLIMEXP_PACKAGE=x", "measure=[sise]"])
def test_a_wrong_setting_is_found(text: str, runs: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017 (of Hydra, of the check, or the assertion)
        hold_setting([text])


@pytest.mark.fast
@pytest.mark.parametrize("target", ["nothing.md", "glossary.md#nothing", "../README.md", "http:"])
def test_a_wrong_link_is_found(target: str) -> None:
    with pytest.raises(AssertionError):
        hold_link(ROOT / "docs" / "index.md", target)


@pytest.mark.fast
def test_the_tree_of_the_readme_is_that_of_the_package() -> None:
    """Every room is named, with its purpose, and every name is a room."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2].split("```")[1]
    below = tree.partition("slimexp/\n")[2].partition("\nhydra_plugins/")[0]
    named = dict(line.split(maxsplit=1) for line in below.splitlines() if line.split()[0].endswith("/"))
    rooms = {f"{path.name}/" for path in (ROOT / "slimexp").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert named.keys() == rooms
    assert all(2 <= len(purpose.split()) <= 8 for purpose in named.values())
