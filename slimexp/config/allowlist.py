"""Targets that a config may name: a config is code that runs, so it may call components and nothing else.

Allowed is what a file under ``conf/`` names; of slimexp, every class that has a base in common with one of those; of
other packages, the classes of a few modules that hold components alone; and all of the packages named in the
environment variable ``SLIMEXP_PACKAGES``, for components of your own.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimexp.config.definition import PackageNotFound, TargetNotFound, home, lineage

OWN_PACKAGES = "SLIMEXP_PACKAGES"
_TARGET = re.compile(r"^\s*(?:-\s*)?_target_:\s*['\"]?([\w.]+)", re.MULTILINE)
_MODULES = (  # of other packages: every class in there is a component
    "optuna.samplers",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
    "pytorch_lightning.plugins",
    "pytorch_lightning.profilers",
    "pytorch_lightning.strategies",
    "torch.optim",
    "transformers.optimization",
)
_PLUGINS = ("hydra._internal.core_plugins", "hydra_plugins", "logging", "colorlog")  # of Hydra and its logging
_ALLOWED = tuple(f"{name}." for name in (*_MODULES, *_PLUGINS[:2]))
_TOPS = {"slimexp", *(name.partition(".")[0] for name in _MODULES)}
_LOGGING = tuple(f"{name}." for name in _PLUGINS[2:])
_SCHEDULES = re.compile(r"transformers\.optimization\.get_\w*schedule\w*")  # functions that are components
_DEEPEST = 20  # a resolver could make trees without end


def faults(node: DictConfig | ListConfig, registry: Path, path: str = "") -> Iterator[str]:
    """One line for every ``_target_`` below ``node`` that is no component; what resolvers return is looked at too."""
    for where, target in _targets(node, path):
        if target is None:
            yield f"{where} is nested deeper than {_DEEPEST} levels: what it names is not looked at"
        elif not (_is_allowed(target, registry) or ("_logging." in where and target.startswith(_LOGGING))):
            yield (
                f"{where} must be a component, got '{target}': what conf/ names, its kin in slimexp, or a class of "
                f"{', '.join(_MODULES)}; for those of your own package, set {OWN_PACKAGES}=<package>"
            )


def _is_allowed(target: str, registry: Path) -> bool:
    if target.partition(".")[0] in own_packages() or target in named(registry):
        return True
    try:
        definition = home(target)
        if target.startswith("slimexp."):
            return bool(set(lineage(target)) & _bases(registry))
    except TargetNotFound as error:  # a misspelt component and a missing package have messages of their own
        return isinstance(error, PackageNotFound) or target.partition(".")[0] in _TOPS
    if definition is None:
        return False
    name, is_class = definition
    return (is_class and name.startswith(_ALLOWED)) or _SCHEDULES.fullmatch(name) is not None


def _targets(node: DictConfig | ListConfig, path: str, depth: int = 0) -> Iterator[tuple[str, str | None]]:
    """(path, target) of all that is below ``node``; a logging configuration calls what is at ``()`` and ``class``.

    The target of what is too deep is ``None``.
    """
    if node._is_none() or node._is_missing():
        return
    if depth > _DEEPEST:
        yield path, None
        return
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        below = f"{path}[{key}]" if isinstance(node, ListConfig) else f"{path}.{key}".lstrip(".")
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException:
            continue  # reported by itself
        if isinstance(value, DictConfig | ListConfig):
            yield from _targets(value, below, depth + 1)
        elif value is not None and (key in ("_target_", "()") or (key == "class" and "_logging." in below)):
            yield below, str(value)


def own_packages() -> frozenset[str]:
    """Packages of the user's own components."""
    return frozenset(filter(None, re.split(r"[,\s]+", os.environ.get(OWN_PACKAGES, ""))))


@cache
def named(registry: Path) -> frozenset[str]:
    """Targets in the files under ``conf/``, or under the folder of one of its groups."""
    texts = (path.read_text(encoding="utf-8") for path in registry.rglob("*.yaml"))
    return frozenset(target for text in texts for target in _TARGET.findall(text))


@cache
def _bases(registry: Path) -> frozenset[str]:
    """Classes of slimexp that components derive from, and the components themselves."""
    return frozenset(name for target in named(registry) for name in _kin(target))


def _kin(target: str) -> Iterator[str]:
    try:
        yield from (name for name in lineage(target) if name.startswith("slimexp."))
    except TargetNotFound:
        return
