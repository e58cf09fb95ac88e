"""Checks a configuration before anything is loaded.

``conf/`` is the registry of components: ``check`` binds every key to its constructor's signature without importing it.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimexp.config import allowlist, binding, composition, secret
from slimexp.config import schema as config_schema
from slimexp.config.annotation import fits
from slimexp.config.build import ConfigError
from slimexp.config.composition import groups, options
from slimexp.config.definition import TargetNotFound, lineage
from slimexp.config.schema import Run

_LISTS = {"list[int]": "a list of whole numbers", "list[float]": "a list of numbers"}


def check(cfg: DictConfig, schema: type = Run) -> None:
    """Check a composed config against its schema and the signatures of everything it names; import nothing.

    A ``~`` that a path begins with becomes the home folder here, as every command checks its config.

    Args:
        cfg: Composed config, without the ``hydra`` node.
        schema: Dataclass of the root keys.

    Raises:
        ConfigError: Something is wrong; the message has one line for each fault.
    """
    if odd := list(binding.nameless(cfg)):
        raise ConfigError("\n".join(odd))
    keys = [item.name for item in fields(schema)]
    config_schema.expand(cfg)
    errors = list(allowlist.faults(cfg, composition.CONF_DIR))
    for path, parent, key in binding.items(cfg):
        if parent is cfg and key not in keys:
            errors.append(binding.unknown(str(key), "", keys, also=groups()))
        elif parent is cfg and OmegaConf.is_missing(cfg, key) and options(str(key)):
            errors.append(f"{key} is not chosen: add {key}=<option>; options: {', '.join(options(str(key)))}")
        else:
            errors += binding.faults(path, parent, key, composition.CONF_DIR)
    for item in fields(schema):
        node = _at_key(cfg, item.name) if isinstance(item.type, type) and is_dataclass(item.type) else None
        if isinstance(node, DictConfig):
            valid = [below.name for below in fields(item.type)]  # type: ignore[arg-type]
            errors += [binding.unknown(str(key), item.name, valid) for key in node if key not in valid]
            errors += _list_faults(item.name, node, item.type)
    if "pipeline" in keys and isinstance(cfg.get("pipeline"), DictConfig):
        errors += _pipeline_faults(cfg.pipeline)
    errors += [*config_schema.faults(cfg), *_kind_faults(cfg)]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))


def _list_faults(path: str, node: DictConfig, kind: Any) -> Iterator[str]:
    """One line for each list of a schema that has an item of another type: OmegaConf lets lists into lists."""
    for item in fields(kind):
        words = _LISTS.get(str(item.type))
        if words and not fits(str(item.type), value := _at_key(node, item.name), strict=True):
            yield f"{path}.{item.name} must be {words}, got {value}"


def _kind_faults(cfg: DictConfig) -> Iterator[str]:
    """One line for each component of a root group that has no base in common with all that ``conf/`` offers there."""
    for key in ("model", "baseline", "data", "trainer", "logger"):
        node, group = _at_key(cfg, key), key.replace("baseline", "model")
        if isinstance(node, DictConfig) and "_target_" in node:
            yield from _kind_fault(key, node, group)
        elif node is not None or (key in cfg and key == group and options(group) and _is_null(cfg, key)):
            choice = key if key == group else f"{group}@{key}"
            yield binding.not_a_component(key, secret.written(cfg)[key], choice, composition.CONF_DIR / group)
    for group in ("measure", "callback"):
        entries = _at_key(cfg, group)
        for name in map(str, entries) if isinstance(entries, DictConfig) else ():
            node = _at_key(entries, name)
            if not isinstance(node, DictConfig) and not OmegaConf.is_interpolation(entries, name):
                shown = "null" if node is None else repr(secret.written(entries)[name])
                yield f"{group}.{name} must be a component, got {shown}: ~{group}.{name} drops it"
            elif group == "measure" and node is not None:
                yield from _kind_fault(f"{group}.{name}", node, group)


def _at_key(cfg: DictConfig, key: str) -> Any:
    try:
        return cfg.get(key)
    except OmegaConfBaseException:
        return None  # reported by itself


def _is_null(cfg: DictConfig, key: str) -> bool:
    """Whether ``null`` was given for ``key``, not what cannot be read."""
    return not OmegaConf.is_interpolation(cfg, key) and not OmegaConf.is_missing(cfg, key)


def _kind_fault(path: str, node: object, group: str) -> Iterator[str]:
    """A line where the component at ``path`` shares no base with those of its group; none where it does."""
    if not isinstance(node, DictConfig) or "_target_" not in node or _is_offered(node, group):
        return
    shared = binding.shared_bases(composition.CONF_DIR / group)
    try:
        related = bool(shared & set(lineage(str(node["_target_"]))))
    except (TargetNotFound, OmegaConfBaseException):
        return  # reported by itself
    if shared and not related:
        kind = min(shared, key=len).rpartition(".")[2]
        yield f"{path} must be a {kind}, got {node['_target_']}: options: {', '.join(options(group))}"


def _is_offered(node: DictConfig, group: str) -> bool:
    """Whether ``conf/`` names the class in that group: then no source needs to be read to know its kind."""
    try:
        return str(node["_target_"]) in allowlist.named(composition.CONF_DIR / group)
    except OmegaConfBaseException:
        return False  # reported by itself


def _pipeline_faults(pipeline: DictConfig) -> Iterator[str]:
    if not pipeline:
        yield (
            "pipeline is empty: add pipeline=<option> or +experiment=<option>; "
            f"pipelines: {', '.join(options('pipeline'))}; experiments: {', '.join(options('experiment'))}"
        )
        return
    right = [str(stage) for stage in pipeline if _is_technique(pipeline._get_node(stage))]
    for stage in map(str, pipeline):
        if why := config_schema.unfit_name(stage):
            yield f"a stage's name {why}, got {stage!r}"
        if stage not in right:
            close = get_close_matches(stage, right, n=1)
            hint = f"; did you mean 'pipeline.{close[0]}'?" if close else f"; ~pipeline.{stage} leaves it out"
            yield f"pipeline.{stage} is not a technique: its _target_ must be a class of slimexp.technique{hint}"


def _is_technique(node: object) -> bool:
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    if _is_offered(node, "technique"):
        return True
    try:
        return any(name.startswith("slimexp.technique.") for name in lineage(str(node["_target_"])))
    except (TargetNotFound, OmegaConfBaseException):
        return True  # reported by itself
