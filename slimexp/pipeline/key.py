"""Keys of stages: digests of everything that a result depends on, its code included, and of nothing else.

The code of a stage is the import closure of what its configuration names by ``_target_``, and of ``RESULT_DRIVERS``.
So a change in one technique leaves the results of another as they are, and nobody keeps a list of the files that a
result depends on. What is kept by hand is the contrary, ``NO_EFFECT`` and ``FIGURES_ONLY``: modules that are imported
but change no result.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slimexp.config import secret
from slimexp.config.allowlist import own_packages
from slimexp.config.definition import source_path
from slimexp.data.base import Corpus
from slimexp.model.base import Source
from slimexp.pipeline.arms import Arm, of_stage
from slimexp.pipeline.import_closure import Find, closure, digest
from slimexp.record.environment import environment
from slimexp.record.stage import DENSE, START, Stage, key, shaping
from slimexp.technique.finetune import Finetune

# Modules that the pipeline calls to make a result, beside what a configuration names. The pipeline itself only decides
# in which order, and all that it passes to them is in the key.
RESULT_DRIVERS = (
    "slimexp.pipeline.fit",  # loads, trains and saves
    "slimexp.pipeline.reference",  # numbers the classes
    "slimexp.technique.compatibility",  # constrains the widths of one stage by those that a later stage needs
)
# The same for figures.
FIGURE_DRIVERS = (
    "slimexp.artifact",  # loads the model, and adds figures of its own
    "slimexp.measure.base",  # takes the measures
)
# Imported by code that makes results or takes figures, and without effect on either: module -> why.
NO_EFFECT = {
    "slimexp.host.console": "prints",
    "slimexp.host.progress": "prints",
    "slimexp.host.garbage_collector": "decides when memory is freed",
    "slimexp.host.memory": "says how much there is; what is chosen by it stands in the configuration",
    "slimexp.pipeline.background_writer": "writes the state of training, and does not change it",
    "slimexp.host.out_of_memory": "makes batches smaller where they do not fit, whose results are the same",
    "slimexp.pipeline.progress": "prints",
    "slimexp.record": "writes records, folders and locks; a change in how keys are made changes the keys by itself",
    "slimexp.config.definition": "finds what a configuration names",
    "slimexp.config.signature": "refuses arguments, and changes none",
    "slimexp.stopper": "stops trainings, and a stopped training leaves no result",
    "slimexp.logger": "shows the progress of trainings",
}
# With an effect on figures, and none on weights: module -> why.
FIGURES_ONLY = {
    "slimexp.data.grading": "grades predictions, which only measures make",
    "slimexp.data.rows": "holds what was graded",
    "slimexp.decode.fused": "decodes one sequence to measure it; training text is written by the captured step",
    "slimexp.kernel.autotune": "chooses the kernel for packed weights, which no training uses",
    "slimexp.model.serving": "loads a model to measure it",
}

_COMPUTE = ("torch", "transformers", "tokenizers", "torchmetrics", "lm_eval", "datasets", "compressed-tensors")
_INSTALLED = {"site-packages", "dist-packages"}


def plan(
    cfg: DictConfig,
    corpus: Corpus,
    roots: Mapping[str, Source],
    techniques: Mapping[str, Finetune],
    multiples: Mapping[str, int],
    arms: Sequence[Arm] = (),
) -> Iterator[Stage]:
    """Stages of a run, in order, with their keys.

    Args:
        cfg: The run's configuration.
        corpus: Its text.
        roots: Source of the model of each stage that no other comes before, by the stage's name.
        techniques: Technique of each other stage, by the stage's name.
        multiples: Multiple that the widths of a stage are rounded to for later stages, see ``check_stages``.
        arms: Stages that others are held against; each comes before that other.
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
    callbacks = [node for node in _resolved(cfg.callback).values() if not _has_no_effect(node)]
    training = {
        **shared,
        "dense": keys.get(DENSE),
        "trainer": shaping(_resolved(cfg.trainer)),
        "callback": callbacks,
    }

    def stage(name: str, technique: Finetune, node: DictConfig) -> Stage:
        settings = _resolved(node)
        settings.pop("workers", None)  # however many processes load the data, the batches are the same
        _normalize(settings)
        content = {**training, "parent": parent, "stage": settings}
        content["code"] = result_code([settings, shared["data"], training["trainer"], callbacks])
        if name in multiples:
            content["multiple"] = multiples[name]
        if technique.teacher is not None:
            content["teacher"] = technique.teacher.fingerprint()
        keyed = key(content)
        return Stage(name, keyed, parent, folder / f"{name}-{keyed}")

    for name, technique in techniques.items():
        for arm in of_stage(arms, name):
            yield stage(arm.name, arm.technique, arm.cfg.pipeline[arm.name])
        yield (made := stage(name, technique, cfg.pipeline[name]))
        parent = made.key


def measures(cfg: DictConfig) -> dict[str, Any]:
    """Everything that the figures of a model depend on: where it is the same, they are not taken again."""
    node = _resolved(cfg.measure)
    content = {"measure": secret.written(cfg.measure), "code": figure_code([node, _resolved(cfg.data)])}
    if secret.hides(cfg.measure):  # another value is another measure, and only its digest is written
        content["values"] = key(node)
    return content


def of_test(cfg: DictConfig, measure: type, device: str) -> dict[str, Any]:
    """What results of a measure depend on beside weights, settings and questions: code, libraries and hardware."""
    node = {"_target_": f"{measure.__module__}.{measure.__qualname__}"}
    versions = {name: version for name, version in environment()["versions"].items() if name in _COMPUTE}
    return {"code": figure_code([node, _resolved(cfg.data)]), "versions": versions, "device": device}


def completion_code(technique: Finetune) -> str:
    """Digest of the code by which a teacher writes a stage's texts, which no trainer and no loss has a part in."""
    if technique.completion is None:
        return ""
    start = f"{type(technique.completion).__module__}.{type(technique.completion).__qualname__}"
    return digest(closure([start], packages=_packages(), without=[*NO_EFFECT, *FIGURES_ONLY], find=source_path))


def result_code(nodes: Iterable[Any], *, attachments: Iterable[str] = (), find: Find = source_path) -> str:
    """Digest of the code that makes the model of a stage.

    Args:
        nodes: Resolved configurations of the components that the stage uses. The code of its parent and of its
            teachers is not followed: their keys and fingerprints stand for it.
        attachments: Dotted names of the classes in the manifest of the stage's source, which ``restore`` imports.
            Those of a stage's parent are in the parent's key.
        find: Returns the source file of a module.
    """
    return digest(result_closure(nodes, attachments=attachments, find=find))


def result_closure(
    nodes: Iterable[Any], *, attachments: Iterable[str] = (), find: Find = source_path
) -> dict[str, Path]:
    """Modules, with their source files, that make the model of a stage; arguments as of ``result_code``."""
    starts = [*targets(list(nodes)), *attachments, *RESULT_DRIVERS]
    return closure(starts, packages=_packages(), without=[*NO_EFFECT, *FIGURES_ONLY], find=find)


def figure_code(nodes: Iterable[Any], *, find: Find = source_path) -> str:
    """Digest of the code that measures a model.

    Args:
        nodes: Resolved configurations of the measures and of the corpus.
        find: Returns the source file of a module.
    """
    return digest(figure_closure(nodes, find=find))


def figure_closure(nodes: Iterable[Any], *, find: Find = source_path) -> dict[str, Path]:
    """Modules, with their source files, that measure a model; arguments as of ``figure_code``."""
    return closure([*targets(list(nodes)), *FIGURE_DRIVERS], packages=_packages(), without=NO_EFFECT, find=find)


def targets(tree: Any) -> Iterator[str]:
    """Every value of ``_target_`` in a resolved configuration, at any depth."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield str(tree["_target_"])
        tree = list(tree.values())
    for below in tree if isinstance(tree, list) else ():
        yield from targets(below)


def _packages() -> frozenset[str]:
    """Packages whose imports are followed: slimexp, and those of the user.

    Installed packages are left out: they are no work in progress, and may be as large as torch.
    """
    paths = {package: source_path(package) for package in own_packages()}
    own = [package for package, path in paths.items() if path is not None and _INSTALLED.isdisjoint(path.parts)]
    return frozenset({"slimexp", *own})


def _attachments(source: Source) -> set[str]:
    return {row["class"] for row in source.history().attachments}


def _has_no_effect(callback: Mapping[str, Any]) -> bool:
    return str(callback.get("_target_")).startswith(tuple(f"{name}." for name in NO_EFFECT))


def _normalize(settings: dict[str, Any]) -> None:
    """Drop where a teacher's outputs are kept, and what is not there: a config may not know of it."""
    if (cache := settings.pop("cache", None)) is not None:
        settings["cache"] = {name: value for name, value in cache.items() if name != "folder"}
    if settings.get("completion") is None:
        settings.pop("completion", None)


def _resolved(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _text_digest(corpus: Corpus) -> str:
    """Digest of the text itself, for a file can change under the same path."""
    hasher = hashlib.sha256()
    for split, examples in corpus.splits.items():
        for example in examples:
            hasher.update(repr((split, example.source, example.target, example.label)).encode())
    return hasher.hexdigest()
