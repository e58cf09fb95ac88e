"""Keys of stages: everything that shapes a result counts, the code that makes it among the rest, and nothing else.

The code of a stage is the import closure of what its configuration names by ``_target_``, and of the modules that
drive a stage. So a change in one technique leaves the results of another as they are, and nobody keeps a list of the
files that a result depends on. What is kept by hand is the contrary, ``SHAPES_NOTHING`` and ``SHAPES_FIGURES``: modules
that are imported but leave no trace in a result.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slimexp.config import secret
from slimexp.config.allowlist import own_packages
from slimexp.config.signature import source_path
from slimexp.data.base import Corpus
from slimexp.model.base import Source
from slimexp.pipeline.import_closure import Find, closure, digest
from slimexp.record.stage import DENSE, START, Stage, key, shaping
from slimexp.technique.finetune import Finetune

# What the pipeline calls to make a result, beside what a configuration names. The pipeline itself only decides in which
# order, and all that it hands them is in the key.
DRIVES = (
    "slimexp.pipeline.fit",  # loads, trains and saves
    "slimexp.pipeline.reference",  # numbers the classes
    "slimexp.technique.row_multiple",  # hands widths on to other stages
)
MEASURES = (
    "slimexp.artifact",  # loads what is measured, and gives figures of its own
    "slimexp.measure.base",  # takes the measures
)
# Imported by what makes a result or takes a figure, and no part of either: module -> why.
SHAPES_NOTHING = {
    "slimexp.host.console": "prints",
    "slimexp.host.garbage_collector": "decides when memory is freed",
    "slimexp.pipeline.progress": "prints",
    "slimexp.record": "keeps what is finished, folders and locks; another way of making keys makes other keys",
    "slimexp.config.signature": "refuses arguments, or lets them pass as they are",
    "slimexp.stopper": "gives a training up, and what was given up is no result",
    "slimexp.logger": "shows how a training goes",
}
# Shape figures, and no weight: module -> why.
SHAPES_FIGURES = {
    "slimexp.data.grading": "grades predictions, which only measures do",
    "slimexp.kernel.autotune": "chooses what multiplies packed weights, which no training does",
    "slimexp.model.serving": "loads a model to measure it",
}

_INSTALLED = {"site-packages", "dist-packages"}


def plan(
    cfg: DictConfig,
    corpus: Corpus,
    roots: Mapping[str, Source],
    techniques: Mapping[str, Finetune],
    multiples: Mapping[str, int],
) -> Iterator[Stage]:
    """Stages of a run, in order, with their keys.

    Args:
        cfg: The run's configuration.
        corpus: Its text.
        roots: What the stages that no other comes before take their model from, by name.
        techniques: Those of the other stages, by name.
        multiples: As ``hand_on`` gives them.
    """
    shared = {
        "data": _resolved(cfg.data),
        "text": _text_digest(corpus),
        "seed": cfg.seed,
        "save_dtype": cfg.save_dtype,
    }
    folder = Path(cfg.runs) / cfg.name
    keys = {}
    for name, source in roots.items():
        node = _resolved(cfg.baseline or cfg.model if name == DENSE else cfg.model)
        content = {**shared, "model": node, "root": name, "weights": source.fingerprint()}
        content["code"] = result_code([node, shared["data"]], attachments=_attachments(source))
        keys[name] = key(content)
        yield Stage(name, keys[name], None, folder / f"{name}-{keys[name]}")
    parent = keys.get(START, keys.get(DENSE))
    callbacks = [node for node in _resolved(cfg.callback).values() if not _shapes_nothing(node)]
    training = {
        **shared,
        "dense": keys.get(DENSE),
        "compile": cfg.compile,
        "trainer": shaping(_resolved(cfg.trainer)),
        "callback": callbacks,
    }
    for name, technique in techniques.items():
        own_settings = _resolved(cfg.pipeline[name])
        own_settings.pop("workers", None)  # more processes that load data give the same batches
        content = {**training, "parent": parent, "stage": own_settings}
        content["code"] = result_code([own_settings, shared["data"], training["trainer"], callbacks])
        if name in multiples:
            content["multiple"] = multiples[name]
        if technique.teacher is not None:
            content["teacher"] = technique.teacher.fingerprint()
        yield Stage(name, own := key(content), parent, folder / f"{name}-{own}")
        parent = own


def measures(cfg: DictConfig) -> dict[str, Any]:
    """What figures are taken by: where it is the same, they need not be taken again."""
    node = _resolved(cfg.measure)
    wanted = {"measure": secret.written(cfg.measure), "code": figure_code([node, _resolved(cfg.data)])}
    if secret.hides(cfg.measure):  # another value is another measure, and only its digest is kept
        wanted["values"] = key(node)
    return wanted


def result_code(nodes: Iterable[Any], *, attachments: Iterable[str] = (), find: Find = source_path) -> str:
    """Digest of the code that makes the model of a stage.

    Args:
        nodes: Resolved configurations of what the stage uses. Of its parent's model and teachers only what is named
            here counts: their own keys and fingerprints hold the rest.
        attachments: Classes that the manifest of the stage's source names, which ``restore`` imports by name. Those of
            a stage's parent are in the parent's key.
    """
    return digest(result_closure(nodes, attachments=attachments, find=find))


def result_closure(
    nodes: Iterable[Any], *, attachments: Iterable[str] = (), find: Find = source_path
) -> dict[str, Path]:
    """Modules, with their sources, that make the model of a stage; arguments as of ``result_code``."""
    named = [*targets(list(nodes)), *attachments, *DRIVES]
    return closure(named, packages=_packages(), without=[*SHAPES_NOTHING, *SHAPES_FIGURES], find=find)


def figure_code(nodes: Iterable[Any], *, find: Find = source_path) -> str:
    """Digest of the code that measures a model: of the measures and the corpus that ``nodes`` describe."""
    return digest(figure_closure(nodes, find=find))


def figure_closure(nodes: Iterable[Any], *, find: Find = source_path) -> dict[str, Path]:
    """Modules, with their sources, that measure a model; arguments as of ``figure_code``."""
    return closure([*targets(list(nodes)), *MEASURES], packages=_packages(), without=SHAPES_NOTHING, find=find)


def targets(tree: Any) -> Iterator[str]:
    """Every ``_target_`` in a resolved configuration."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield str(tree["_target_"])
        tree = list(tree.values())
    for below in tree if isinstance(tree, list) else ():
        yield from targets(below)


def _packages() -> frozenset[str]:
    """Where code is followed: slimexp, and packages of the user's own.

    An installed one is no work in progress, and may be as large as torch.
    """
    paths = {package: source_path(package) for package in own_packages()}
    own = [package for package, path in paths.items() if path is not None and _INSTALLED.isdisjoint(path.parts)]
    return frozenset({"slimexp", *own})


def _attachments(source: Source) -> set[str]:
    return {row["class"] for row in source.history().attachments}


def _shapes_nothing(callback: Mapping[str, Any]) -> bool:
    return str(callback.get("_target_")).startswith(tuple(f"{name}." for name in SHAPES_NOTHING))


def _resolved(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _text_digest(corpus: Corpus) -> str:
    """Digest of the text itself: a file can change under the same path."""
    whole = hashlib.sha256()
    for split, examples in corpus.splits.items():
        for example in examples:
            whole.update(repr((split, example.source, example.target, example.label)).encode())
    return whole.hexdigest()
