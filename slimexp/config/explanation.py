"""Explanations of errors for a user: the rule, the value and the way out in a few lines, without secrets."""

import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from slimexp.config import binding, build, composition, override, renamed, secret
from slimexp.config.build import ConfigError
from slimexp.config.composition import compose, groups, options
from slimexp.config.schema import Run
from slimexp.host import console

_PARETO = "pareto"  # the sweeper that ships with the package


def explain(error: BaseException, config_name: str = "config") -> str | None:
    """The message to a user about ``error``, without secrets; ``None`` where it is a bug."""
    message = _explain(error, config_name)
    return None if message is None else secret.redacted(message)


def _explain(error: BaseException, config_name: str) -> str | None:
    if match := re.search(r"Ambiguous value for argument '(.*)'$", str(error), re.MULTILINE):
        way = f"quote it: {quoted}" if (quoted := _quoted(match[1])) else "put it in quotes"
        problem = f"'{_masked(match[1])}' has several values"
        return f"{problem}: add --multirun to run each, or, where the comma is part of one, {way}"
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error, config_name)
    if isinstance(error, (MissingMandatoryValue, InterpolationKeyError, InterpolationResolutionError)):
        return str(error).strip()
    if isinstance(error, InstantiationException):
        return str(error) if build.refused(error.__cause__) else None
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error)
    if isinstance(error, (ConfigError, CompactHydraException, YAMLError)):
        return str(error)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "\n".join(override.nameless(override.assignments(sys.argv[1:]), options)) or str(error)
    if isinstance(error, ValueError) and _is_raised_here(error):
        return str(error)
    cfg: Any = HydraConfig.instance().cfg  # before a job it has no folder yet
    folder = None if cfg is None else OmegaConf.select(cfg, "hydra.runtime.output_dir")
    message = console.disk_fault(error, folder, setting="runs=FOLDER")
    if message is None and isinstance(error, OSError) and error.filename and _is_raised_by_hydra(error):
        return f"cannot write to {error.filename} ({error.strerror}): choose a folder of your own by runs=FOLDER"
    if message is None and isinstance(error, PermissionError) and error.filename:
        return f"no access to {error.filename} ({error.strerror})"
    return message


def _explain_syntax(error: OverrideParseException) -> str:
    if (shown := _masked(error.override)) != error.override:
        return f"cannot read '{shown}': put it in quotes"
    if quoted := override.quoted(error.override):
        return f"cannot read '{error.override}': where its value is text, quote it: {quoted}"
    return f"cannot read '{error.override}': {str(error).splitlines()[0]}"


def _masked(text: str) -> str:
    return secret.masked([text])[0]


def _quoted(text: str) -> str:
    """The word of ``override.quoted``; empty where it would show a secret."""
    return override.quoted(text) if _masked(text) == text else ""


def _is_raised_here(error: BaseException) -> bool:
    """Whether a line of this package raised ``error``: then its message is for the user."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and Path(frames[-1][0].f_code.co_filename).is_relative_to(composition.PACKAGE)


def _is_raised_by_hydra(error: BaseException) -> bool:
    """Whether Hydra raised ``error``, by itself or through the system, as when it makes the folder of a run."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [file for file in files if file not in (os.__file__, pathlib.__file__)]
    return bool(files) and Path(files[-1]).is_relative_to(Path(hydra.__file__).parent)


def _explain_missing(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    choices = list(error.options or options(group))
    if not choices:
        return " ".join(str(error).partition("\nConfig search path")[0].split())
    if not name:
        return f"{group or 'the config'} must be the name of an option, got ''; options: {', '.join(choices)}"
    present = renamed.OPTIONS.get((group, name))
    close = [present] if present else get_close_matches(name, choices, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"no {group or 'config'} is called '{name}'{hint or ';'} available: {', '.join(choices)}"


def _explain_composition(error: ConfigCompositionException, config_name: str) -> str:
    cause = str(error.__cause__).splitlines()[:1] if isinstance(error.__cause__, OmegaConfBaseException) else []
    text = "\n".join([str(error), *cause]).strip()
    if re.match(r"Could not override '", text):
        return _explain_overrides(text, config_name)
    if match := re.search(r"config group '(.+)' does not exist", text):
        close = [renamed.GROUPS[match[1]]] if match[1] in renamed.GROUPS else get_close_matches(match[1], groups(), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"there is no config group '{match[1]}': {hint}groups: {', '.join(groups())}"
    if match := re.match(r"In '(.+)': ConfigKeyError raised.*\nKey '(.+)' not in 'Run'", text):
        return f"conf/{match[1]}.yaml: {binding.unknown(match[2], '', [item.name for item in fields(Run)])}"
    return ": ".join(text.splitlines()) if text.startswith("Error merging override") else text


def _explain_overrides(text: str, config_name: str) -> str:
    """Name the nearest key to every misspelt one, by composing again without them."""
    overrides = override.assignments(sys.argv[1:])
    misspelt: list[str] = []
    cfg = DictConfig({})
    while match := re.match(r"Could not override '(.+?)'", text):
        if match[1] in misspelt:
            return text  # it stands in a file
        misspelt.append(match[1])
        overrides = [item for item in overrides if override.key(item) != match[1].partition("@")[0]]
        try:
            cfg, text = compose([override.first(item) for item in overrides], config_name), ""
        except ConfigCompositionException as error:
            cfg, text = DictConfig({}), str(error)
    keys = [path for path, _, _ in binding.items(cfg)]
    return "\n".join(_nearest(key, keys) for key in misspelt)


def _sweeper_keys() -> list[str]:
    """Keys of the sweeper that ships with the package: a composed config lacks its ``hydra`` node."""
    node = DictConfig(OmegaConf.load(composition.CONF_DIR / "hydra" / "sweeper" / f"{_PARETO}.yaml"))
    return [f"hydra.sweeper.{path}" for path, _, _ in binding.items(node) if not path.startswith(("_", "defaults"))]


def _nearest(misspelt: str, keys: Sequence[str]) -> str:
    if misspelt in (others := _sweeper_keys()) and f"hydra/sweeper={_PARETO}" not in sys.argv:
        return f"'{misspelt}' is a setting of another sweeper: add hydra/sweeper={_PARETO}"
    return override.nearest(misspelt, [*keys, *others], options, groups())
