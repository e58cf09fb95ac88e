"""The code in a stage's key is all that makes its result, and as little else as can be."""

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from slimexp import artifact
from slimexp.config.composition import compose
from slimexp.config.definition import source_path
from slimexp.model.loading import Pretrained
from slimexp.pipeline import key
from slimexp.pipeline.import_closure import Find, closure
from slimexp.serialization.manifest import ATTACHMENTS
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask

PACKAGE = Path(key.__file__).parents[len(key.__name__.split(".")) - 2]
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
STAGES = {
    "prune": ["pipeline=prune", "importance@pipeline.prune.importance=wanda"],
    "quantize": ["pipeline=quantize", "+rounding@pipeline.quantize.rounding=gptq"],
    "distill": ["pipeline=distill"],
}
ALL_EXPERIMENTS = sorted(path.stem for path in (PACKAGE.parent / "conf" / "experiment").glob("*.yaml"))
NO_EFFECT = tuple(f"{name}." for name in key.NO_EFFECT)  # and all below them
# Calls by which a module can import what no import statement names: module -> why the closure is complete anyway.
COMPUTED_IMPORTS = {
    "slimexp.config.build": "what `_target_` names, which the closure starts from",
    "slimexp.sweeper.command": "what `_target_` names, to refuse a sweep",
    "slimexp.host.extra": "other packages",
    "slimexp.model.restore": "attachments of a manifest, which the closure of a root starts from",
}


def nodes(name: str) -> list[Any]:
    """Configuration of a stage and of its data."""
    cfg = compose([*STAGES[name], "model=t5_spelling", "data=spelling"])
    return [OmegaConf.to_container(node, resolve=True) for node in (cfg.pipeline[name], cfg.data)]


def changed(text: str) -> str:
    return f"{text}\n_ADDED = 1\n"


class _OtherDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Expr(ast.Constant("In other words.")) if text else node


def rewritten(text: str) -> str:
    """The same code in other lines, without its comments and with other docstrings."""
    return f"# What this is.\n\n{ast.unparse(_OtherDocstrings().visit(ast.parse(text)))}\n\n# The end.\n"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / PACKAGE.name
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "zoo"))
    return folder


@pytest.fixture
def find(copied: Path) -> Find:
    """The sources of the copy."""

    def find(module: str) -> Path | None:
        path = source_path(module)
        return None if path is None else copied / path.relative_to(PACKAGE)

    return find


@pytest.fixture
def edit(find: Find) -> Iterator[Callable[[str, Callable[[str], str]], None]]:
    """Rewrites a module of the copy until the test ends."""
    before: dict[Path, str] = {}

    def edit(module: str, how: Callable[[str], str]) -> None:
        path = find(module)
        assert path is not None
        text = before.setdefault(path, path.read_text(encoding="utf-8"))
        path.write_text(how(text), encoding="utf-8")

    yield edit
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")


Edit = Callable[[str, Callable[[str], str]], None]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "distill" else [pytest.mark.slow]) for name in STAGES]
)
def test_a_change_in_any_module_of_the_closure_makes_another_key(name: str, find: Find, edit: Edit) -> None:
    settings = nodes(name)
    keys = {key.result_code(settings, find=find)}
    inside = key.result_closure(settings, find=find)
    assert "slimexp.technique.finetune" in inside and "slimexp" in inside
    for module in inside:
        edit(module, changed)
        keys.add(key.result_code(settings, find=find))
        edit(module, str)
    assert len(keys) == 1 + len(inside)


@pytest.mark.fast
@pytest.mark.parametrize("name", STAGES)
def test_changes_in_all_other_modules_keep_the_key(name: str, find: Find, edit: Edit) -> None:
    settings = nodes(name)
    before, inside = key.result_code(settings, find=find), key.result_closure(settings, find=find)
    outside = MODULES.keys() - inside.keys()
    assert len(outside) > len(MODULES) / 2  # else one import has drawn in nearly everything
    for module in outside:
        edit(module, changed)
    assert key.result_code(settings, find=find) == before


@pytest.mark.parametrize("name", STAGES)
def test_comments_docstrings_and_formatting_keep_the_key(name: str, find: Find, edit: Edit) -> None:
    settings = nodes(name)
    before, inside = key.result_code(settings, find=find), key.result_closure(settings, find=find)
    for module in inside:
        edit(module, rewritten)
    assert key.result_code(settings, find=find) == before


@pytest.mark.fast
def test_techniques_do_not_share_their_own_modules(find: Find, edit: Edit) -> None:
    settings = {name: nodes(name) for name in STAGES}
    before = {name: key.result_code(settings[name], find=find) for name in STAGES}
    for module, concerned in (
        ("slimexp.technique.prune", {"prune"}),
        ("slimexp.technique.quantize", {"quantize"}),
        ("slimexp.technique.distill", {"distill"}),
        ("slimexp.importance.wanda", {"prune"}),
        ("slimexp.rounding.gptq", {"quantize"}),
        ("slimexp.loss.kl", {"distill"}),
        ("slimexp.importance.taylor", set()),
        ("slimexp.data.spelling", set(STAGES)),
    ):
        edit(module, changed)
        assert {name for name in STAGES if key.result_code(settings[name], find=find) != before[name]} == concerned
        edit(module, str)


def test_figures_have_code_of_their_own(find: Find, edit: Edit, copied: Path) -> None:
    """A measure, the grading, a kernel and its C++ source: models stay, figures are taken again."""
    cfg = compose(["model=t5_spelling", "data=spelling", "measure=[size,latency]"])
    measured = [OmegaConf.to_container(node, resolve=True) for node in (cfg.measure, cfg.data)]
    stages = [nodes(name) for name in STAGES]

    def codes() -> tuple[str, list[str]]:
        return key.figure_code(measured, find=find), [key.result_code(one, find=find) for one in stages]

    figures, results = codes()
    for module in (
        "slimexp.measure.latency",
        "slimexp.data.grading",
        "slimexp.kernel.autotune",
        "slimexp.decode.fused",
        "slimexp.model.serving",
    ):
        edit(module, changed)
        assert codes()[0] != figures and codes()[1] == results, module
        edit(module, str)
    source = copied / "kernel" / "vnni.cpp"
    text = source.read_bytes()
    source.write_bytes(text + b"// more")
    assert codes()[0] != figures and codes()[1] == results
    source.write_bytes(text)
    edit("slimexp.measure.lm_eval", changed)  # which was not chosen
    assert codes() == (figures, results)


@pytest.mark.fast
def test_lists_of_modules_hold_what_is_there_and_needed() -> None:
    listed = [*key.RESULT_DRIVERS, *key.FIGURE_DRIVERS, *key.NO_EFFECT, *key.FIGURES_ONLY]
    assert [module for module in listed if module not in MODULES] == []
    imported = closure(
        [*key.RESULT_DRIVERS, *key.FIGURE_DRIVERS, "slimexp.technique.prune", "slimexp.data.spelling"],
        packages={"slimexp"},
    )
    callbacks = {"slimexp.pipeline.progress", "slimexp.stopper"}  # chosen by conf alone
    assert {*key.NO_EFFECT, *key.FIGURES_ONLY} - callbacks <= imported.keys()


@pytest.mark.fast
def test_modules_that_import_by_a_computed_name_are_known() -> None:
    call = re.compile(r"\b(import_module|__import__|get_class|get_method|get_object|_locate|instantiate|run_module)\(")
    found = {module for module, path in MODULES.items() if call.search(path.read_text(encoding="utf-8"))}
    found -= {"slimexp.config.definition"}  # whose _locate imports nothing
    assert found == COMPUTED_IMPORTS.keys()


@pytest.mark.fast
def test_components_of_an_own_package_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "closure_own"
    package.mkdir()
    for name, text in (("__init__", ""), ("one", "import closure_own.two"), ("two", "x = 1")):
        (package / f"{name}.py").write_text(text)
    node = {"_target_": "slimexp.technique.prune.Prune", "importance": {"_target_": "closure_own.one.Own"}}
    unknown = key.result_code([node])
    monkeypatch.setenv("SLIMEXP_PACKAGES", "torch, closure_own")
    before = key.result_code([node])
    assert before != unknown
    assert [module for module in key.result_closure([node]) if module.startswith("torch")] == []
    (package / "two.py").write_text("x = 2")
    assert key.result_code([node]) != before


@pytest.mark.fast
def test_a_model_with_attachments_counts_their_code(
    tiny: Callable[..., Any], corpus: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restoring them imports what the manifest names, which no configuration does."""
    family = tiny("causal_lm")
    _, layer = next(iter(family.compressible().items()))
    attach(layer, "weight", Mask(shape=list(layer.weight.shape)))
    artifact.save(family, tmp_path / "masked", dtype=torch.float32, stages=[])
    source = Pretrained(path=str(tmp_path / "masked"), max_length=16)
    cfg = compose(["model=pretrained", f"model.path={tmp_path}", "model.max_length=16", "data=spelling"])
    given: list[set[str]] = []

    def code(nodes: list[Any], *, attachments: set[str]) -> str:
        given.append(attachments)
        return "code"

    monkeypatch.setattr(key, "result_code", code)
    (root,) = key.plan(cfg, corpus("causal_lm"), {"start": source}, {}, {})
    assert root.name == "start" and given == [{"slimexp.weight.mask.Mask"}]


@pytest.mark.fast
@pytest.mark.parametrize("attachment", sorted(ATTACHMENTS))
def test_every_attachment_has_its_module_in_the_closure(attachment: str) -> None:
    module = attachment.rpartition(".")[0]
    assert module in key.result_closure([], attachments=[attachment])


@pytest.mark.fast
@pytest.mark.parametrize("name", ALL_EXPERIMENTS)
def test_closures_of_experiments_stay_small(name: str) -> None:
    """One import more could draw in nearly everything; then any change would be other work."""

    def share(modules: Iterable[str]) -> float:
        return sum(MODULES[module].stat().st_size for module in modules) / whole

    whole = sum(path.stat().st_size for path in MODULES.values())
    cfg = OmegaConf.to_container(compose([f"+experiment={name}"]))
    assert isinstance(cfg, dict)
    for stage in cfg["pipeline"].values():
        results = key.result_closure([stage, cfg["data"]])
        assert not any(re.match(r"slimexp\.(measure|sweeper|page|report|plot)\b", module) for module in results)
        loop = {"base", "kept", "static_cache"} if stage.get("completion") else set()  # which writes text
        assert {module.removeprefix("slimexp.decode.") for module in results if ".decode." in module} == loop
        assert share(results) < 0.4
    assert share(key.figure_closure([cfg["measure"], cfg["data"]])) < 0.4


# Runs pipelines, and prints which modules ran code in the training of each stage, and which were imported.
RUN = """
import json, sys, threading
from pathlib import Path
import slimexp
from slimexp.pipeline import pipeline
from slimexp.config.check import check
from slimexp.config.composition import compose

package = str(Path(slimexp.__file__).parent)
ran = {}

def watched(function, stage_of):
    def call(*arguments, **options):
        here, seen = ran.setdefault(stage_of(*arguments), set()), set()
        def hook(frame, event, argument):  # of calls alone, as it returns no tracer of their lines
            if frame.f_code not in seen:
                seen.add(frame.f_code)
                if frame.f_code.co_filename.startswith(package):
                    here.add(frame.f_globals["__name__"])
        threading.settrace(hook)
        sys.settrace(hook)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(None)
            threading.settrace(None)
    return call

pipeline.train = watched(pipeline.train, lambda technique, stage: stage.name)
pipeline.save_root = watched(pipeline.save_root, lambda source, stage, *rest: stage.name)
for overrides in json.loads(sys.argv[1]):
    cfg = compose(overrides)
    check(cfg)
    pipeline.Pipeline(cfg, overrides=overrides).run()
loaded = sorted(module for module in sys.modules if f"{module}.".startswith("slimexp."))
found = {"ran": {name: sorted(modules) for name, modules in ran.items()}, "loaded": loaded}
Path(sys.argv[2]).write_text(json.dumps(found))
"""


@pytest.mark.slow  # what no import statement names is looked for in the source, above
def test_whatever_runs_in_a_training_is_in_the_closure(
    start: Callable[..., Any], overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The proof: of all functions that are called while stages are trained, each lies in a module that counts.

    Modules that shape figures run none at all.
    """
    lines = [
        overrides(
            "prune_quantize_distill", "importance@pipeline.prune.importance=wanda", "pipeline.prune.importance.rows=4",
            "+rounding@pipeline.quantize.rounding=gptq", "pipeline.quantize.group_size=8",
            *(f"pipeline.{name}.{value}" for name in ("prune", "quantize", "distill")
              for value in ("steps=2", "batch_size=4")),
        ),
        overrides(
            "prune_structured", "pipeline.prune_structured.steps=1", "pipeline.prune_structured.batch_size=4",
            task="causal_lm",
        ),
    ]  # fmt: skip
    program, kept = tmp_path / "run.py", tmp_path / "ran.json"
    program.write_text(RUN)
    status, _, err = start(program, json.dumps(lines), str(kept)).end()
    assert status == 0, err
    found = json.loads(kept.read_text())
    assert set(found["ran"]) == {"dense", "prune", "quantize", "distill", "prune_structured"}
    everything: list[str] = []
    for line in lines:
        cfg = compose(line)
        counted: set[str] = set()  # of the stages before, too: their keys are in the key
        for name, node in [("dense", cfg.model), *cfg.pipeline.items()]:
            settings = [OmegaConf.to_container(one, resolve=True) for one in (node, cfg.data, cfg.trainer)]
            counted |= key.result_closure(settings).keys()
            uncounted = set(found["ran"][name]) - counted
            assert [one for one in uncounted if not f"{one}.".startswith(NO_EFFECT)] == [], name
        everything += key.targets(OmegaConf.to_container(cfg, resolve=True))
    whole = closure([*everything, "slimexp.pipeline.pipeline", "slimexp.config.check"], packages={"slimexp"})
    assert set(found["loaded"]) <= whole.keys()
