"""Explanations of errors for a user: the rule, the value and the way out in a few lines, without secrets."""

import os
import pathlib
import re
import shlex
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
from slimexp.config.schema import Evaluation, Run
from slimexp.host import console

_EVALUATE = "evaluate"  # config of the program that measures; every other one composes runs
_UNMATCHED = r"Could not (?:override|delete|delete from config\.) '(.+?)'(?:\.| does)"
_TYPES = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "string": "text",
    "subclass": "settings",
    "subclass of int": "a whole number",
    "subclass of float": "a number",
}
_VALUES = ("value", "tree", "whole")
_TOGETHER = ("pipeline", "measure")  # groups of which a run takes several options at once
_PARETO = "pareto"  # the sweeper that ships with the package


def explain(error: BaseException, config_name: str = "config") -> str | None:
    """The message to a user about ``error``, without secrets; ``None`` where it is a bug."""
    message = _explain(error, config_name)
    return None if message is None else secret.redacted(message)


def _explain(error: BaseException, config_name: str) -> str | None:
    if match := re.search(r"Ambiguous value for argument '(.*)'$", str(error), re.MULTILINE):
        return _explain_several(match[1])
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error, config_name)
    if isinstance(error, InterpolationResolutionError) and "Environment variable" in str(error):
        key = "runs" if str(error.full_key) in ("hydra.run.dir", "hydra.sweep.dir") else error.full_key
        return f"{key}: {binding.unresolved(error)}"
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


def _explain_several(text: str) -> str:
    """The message about an override of several values without --multirun."""
    problem = f"'{_masked(text)}' has several values: add --multirun to run each"
    name, _, value = text.partition("=")
    if name in _TOGETHER:
        return f"{problem}, or, for one run with all of them, write {shlex.quote(f'{name}=[{value}]')}"
    if override.key(text) in groups():
        return problem
    way = f"quote it: {quoted}" if (quoted := _quoted(text)) else "put it in quotes"
    return f"{problem}, or, where the comma is part of one, {way}"


def _explain_syntax(error: OverrideParseException) -> str:
    if (shown := _masked(error.override)) != error.override:
        return f"cannot read '{shown}': put it in quotes"
    if plain := override.plain_names(error.override):
        return f"cannot read '{error.override}': names in a mapping have no quotes, write {plain}"
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
        text = " ".join(str(error).partition("\nConfig search path")[0].split())
        return f"{text}: {hint}" if name and (hint := _group_hint(group)) else text
    if not name:
        return f"{group or 'the config'} must be the name of an option, got ''; options: {', '.join(choices)}"
    if present := renamed.OPTIONS.get((group, name)):
        return f"{group} '{name}' is called '{present}' now; available: {', '.join(choices)}"
    close = get_close_matches(name, choices, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"no {group or 'config'} is called '{name}'{hint or ';'} available: {', '.join(choices)}"


def _explain_composition(error: ConfigCompositionException, config_name: str) -> str:
    cause = str(error.__cause__).splitlines()[:1] if isinstance(error.__cause__, OmegaConfBaseException) else []
    text = "\n".join([str(error), *cause]).strip()
    lines = [line for group in _chosen_groups() if (line := _no_root(group, config_name))]
    if config_name == _EVALUATE and lines:
        return "\n".join(lines)
    return _explain_type(f"{text}\n{error.__cause__}") or _explain_text(text, config_name)


def _explain_text(text: str, config_name: str) -> str:
    """The message about what Hydra says of a config that does not compose."""
    if re.match(_UNMATCHED, text):
        return _explain_overrides(text, config_name)
    if match := re.search(r"config group '(.+)' does not exist", text):
        return _explain_group(match[1])
    if match := re.match(r"Multiple values for (\S+)\. To override a value use 'override \1: (.+)'", text):
        return f"'{match[1]}' is there already: write {match[1]}={match[2]}, without the +"
    if match := re.match(
        r"Could not append to config\. An item is already at '(.+)'\.\nEither remove \+ prefix: '(.*)'", text
    ):
        return f"'{match[1]}' is there already: write {match[2]}, without the +"
    if match := re.match(r"In '(.+)': Could not override '(.+?)'", text):
        line = override.now_called(match[2])
        return f"conf/{match[1]}.yaml: {line}" if line else text
    if match := re.match(r"In '(.+)': ConfigKeyError raised.*\nKey '(.+)' not in '(?:Run|Evaluation)'", text):
        where, key = match[1], match[2]
        if where.partition("/")[0] in set(groups()) - {"experiment"} and (line := _no_root(key, config_name)):
            return line
        return f"conf/{where}.yaml: {binding.unknown(key, '', _roots(config_name))}"
    if match := re.match(r"\S+@pipeline\.(\w+)\S* appears more than once in the final defaults list", text):
        return _explain_twice(match[1])
    if match := re.match(r"Error merging override ([^=\s]+)=(\S*)", text):
        if "is not a ListConfig" in text or "Cannot merge DictConfig with ListConfig" in text:
            return f"{match[1]} must be a list, got {match[2]}: write '{match[1]}=[{match[2]}]'"
        if "is not Optional" in text:
            return f"{match[1]} must not be null"
        return ": ".join(text.splitlines())
    return text


def _explain_twice(stage: str) -> str:
    """The message about two stages of one name; keys of a pipeline are its stages, so that each needs its own."""
    defaults = (path.read_text() for path in (composition.CONF_DIR / "pipeline").glob("*.yaml"))
    line = next(filter(None, (re.search(rf"technique@{stage}: *(\w+)", text) for text in defaults)), None)
    technique = line[1] if line else "<technique>"
    return (
        f"two stages are called '{stage}', and names of stages must differ: choose it once in pipeline=[...] and add "
        f"the other, as the last stage, by +technique@pipeline.{stage}_2={technique}; other orders go into a file, "
        f"with a line '- /technique@pipeline.NAME: {technique}' for each stage"
    )


def _explain_type(text: str) -> str:
    """One line about a root key whose value has another type than its schema says; empty for anything else."""
    key = re.search(r"^ *full_key: (.+)$", text, re.MULTILINE)
    match = re.search(
        r"^Value '(?P<value>.*)' (?:of type '(?P<type>\w+)' could not be converted to (?P<kind>Integer|Float)"
        r"|is not a valid (?P<switch>bool) \(type (?P<of>\w+)\))"
        r"|^Cannot convert '\w+' to (?P<text>string): '(?P<tree>.*)'$"
        r"|^Invalid type assigned: \w+ is not a (?P<node>subclass of (?:int|float)|subclass)\b.*\. "
        r"value: (?P<whole>.*)$",
        text,
        re.MULTILINE,
    )
    if not (key and match):
        return ""
    value, kind = (next(filter(None, match.group(*names))) for names in (_VALUES, ("kind", "switch", "text", "node")))
    shown = repr(value) if "str" in match.group("type", "of") else "null" if value == "None" else value
    way = f": set {key[1]}.<key>=<value>" if kind == "subclass" else ""
    return f"{key[1]} must be {_TYPES[kind]}, got {shown}{way}"


def _explain_group(group: str) -> str:
    """The message about a group of the command line that does not exist."""
    for word in override.assignments(sys.argv[1:]):
        name = word.partition("=")[0].lstrip("+~")
        if override.key(word) == group and (line := override.now_called(name)):
            return line
    hint = f"{hint} " if (hint := _group_hint(group)) else ""
    return f"there is no config group '{group}': {hint}groups: {', '.join(groups())}"


def _group_hint(group: str) -> str:
    """The group that was meant by one that does not exist; empty where there is none like it."""
    if line := override.now_called(group):
        return line
    close = [] if group in groups() else get_close_matches(group, groups(), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _roots(config_name: str) -> list[str]:
    """Root keys of a program."""
    return [item.name for item in fields(Evaluation if config_name == _EVALUATE else Run)]


def _chosen_groups() -> list[str]:
    """Groups that the command line chooses an option of for the root of the config."""
    keys = (word.partition("=")[0].lstrip("+") for word in override.assignments(sys.argv[1:]))
    return [key for key in keys if key in groups() and "/" not in key]


def _no_root(group: str, config_name: str) -> str:
    """One line about a group that is no root key of a program; empty where it is one, or an experiment of a run."""
    roots, program = _roots(config_name), _EVALUATE if config_name == _EVALUATE else "train"
    if group not in groups() or group in roots or (program == "train" and group == "experiment"):
        return ""
    place = f"; a stage takes {group}@pipeline.<stage>.{group}=<option>" if program == "train" else ""
    return f"{program} has no {group}: it takes {', '.join(roots)}{place}"


def _explain_overrides(text: str, config_name: str) -> str:
    """Name the nearest key to every misspelt one, by composing again without them."""
    overrides = override.assignments(sys.argv[1:])
    misspelt: dict[str, bool] = {}  # key -> whether it was to be deleted
    cfg = DictConfig({})
    while match := re.match(_UNMATCHED, text):
        if match[1] in misspelt:
            return text  # it stands in a file
        misspelt[match[1]] = "delete" in match[0]
        overrides = [item for item in overrides if override.key(item) != match[1].partition("@")[0]]
        try:
            cfg, text = compose([override.first(item) for item in overrides], config_name), ""
        except ConfigCompositionException as error:
            cfg, text = DictConfig({}), str(error)
    keys = [path for path, _, _ in binding.items(cfg)]
    return "\n".join(
        _explain_deletion(key, keys) if deleted else _nearest(key, keys, config_name)
        for key, deleted in misspelt.items()
    )


def _explain_deletion(key: str, keys: Sequence[str]) -> str:
    """The message about a key that could not be deleted."""
    if below := [path.removeprefix(f"{key}.") for path in keys if path.rpartition(".")[0] == key]:
        return f"'{key}' cannot be left out as a whole: ~{key}.<name> leaves out one of {', '.join(below)}"
    if (renamed_to := override.now_called(key)) or (place := key.rpartition("@")[2]) not in keys:
        return renamed_to or override.unknown(key, keys, options)
    return f"'{place}' is null already, so that ~{key} leaves nothing out: leave out ~{key}"


def _sweeper_keys() -> list[str]:
    """Keys of the sweeper that ships with the package: a composed config lacks its ``hydra`` node."""
    node = DictConfig(OmegaConf.load(composition.CONF_DIR / "hydra" / "sweeper" / f"{_PARETO}.yaml"))
    return [f"hydra.sweeper.{path}" for path, _, _ in binding.items(node) if not path.startswith(("_", "defaults"))]


def _nearest(misspelt: str, keys: Sequence[str], config_name: str) -> str:
    if misspelt in (others := _sweeper_keys()) and f"hydra/sweeper={_PARETO}" not in sys.argv:
        return f"'{misspelt}' is a setting of another sweeper: add hydra/sweeper={_PARETO}"
    if not any(key.endswith(f".{misspelt}") for key in keys) and (line := _no_root(misspelt, config_name)):
        return line
    values = (word.partition("=") for word in override.assignments(sys.argv[1:]))
    value = next((value for key, _, value in values if key == misspelt), "")
    return override.nearest(misspelt, [*keys, *others], options, groups(), value)
