"""The command line: turns a function of a config into a program whose user errors are one message each."""

import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from slimexp.config import allowlist, binding, build, composition, override, renamed, secret
from slimexp.config.build import ConfigError
from slimexp.config.composition import compose, groups, options
from slimexp.config.schema import Run
from slimexp.host import console

_PACKAGE = Path(__file__).parents[1]
_PARETO = "pareto"  # the sweeper that ships with the package

Task = Callable[[DictConfig], Any]


def main(task: Task, config_name: str = "config") -> None:
    """Run ``task`` on the config that the command line describes.

    A user's error, a full disk and a folder that cannot be written are one message on stderr and exit status 2
    (``SLIMEXP_TRACEBACK=1`` shows where it was raised), a bug a traceback, Ctrl-C and SIGTERM one line and status 130
    or 143. In a multirun every job that fails is reported when it fails and the others go on.
    """
    with console.output(), console.interruptible(console.GOES_ON):
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(_help(task))
        else:
            _run(task, config_name)


def _run(task: Task, config_name: str) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself
    run = hydra.main(version_base="1.3", config_path=str(composition.CONF_DIR), config_name=config_name)(
        _reporting(task)
    )
    secret.remember(override.given(sys.argv[1:]))
    try:
        _check_words()
        _check_hydra(config_name)
        run()
    except Exception as error:
        status = _report(error, config_name)
        if status is None and not getattr(error, "reported", False):
            raise
        sys.exit(status or 1)


def _check_words() -> None:
    """Refuse unknown flags, for which Hydra prints a page, and words without a key, at which it breaks.

    Raises:
        ConfigError: One line each.
    """

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help tells what there is)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args()
    if given.resolve and not given.cfg:
        raise ConfigError("--resolve needs --cfg job")
    if found := list(override.keyless(given.overrides)):
        raise ConfigError("\n".join(found))


def _check_hydra(config_name: str) -> None:
    """Refuse what no component is where Hydra itself would build it: before a task sees its config.

    Raises:
        ConfigError: One line each.
    """
    if not any("hydra" in word or word.startswith(("-c", "--config")) for word in sys.argv[1:]):
        return  # composing takes a quarter of a second
    cfg = _with_hydra(config_name)
    if cfg is not None and (found := list(allowlist.faults(cfg.hydra, composition.CONF_DIR, "hydra"))):
        raise ConfigError("\n".join(found))


def _with_hydra(config_name: str) -> DictConfig | None:
    """What the command line composes to, Hydra's own settings included; ``None`` where Hydra will say why it cannot."""
    arguments = sys.argv[1:]
    folders = [word for flag, word in pairwise(arguments) if flag in ("-cd", "--config-dir")]
    folders += [word.partition("=")[2] for word in arguments if word.startswith(("-cd=", "--config-dir="))]
    search = [f"hydra.searchpath=[{','.join(f'file://{os.path.abspath(folder)}' for folder in folders)}]"]
    try:
        given = [override.first(word) for word in override.given(arguments)] + (search if folders else [])
        with (
            warnings.catch_warnings(action="ignore"),
            hydra.initialize_config_dir(str(composition.CONF_DIR), version_base="1.3"),
        ):
            return hydra.compose(config_name, given, return_hydra_config=True)
    except Exception:
        return None


def _help(task: Task) -> str:
    """Hydra's own help copies its repository once per group and file, which takes longer than composing."""
    module = sys.modules[task.__module__]
    program = module.__spec__.name if module.__spec__ else module.__name__
    lines = [
        f"python -m {program} [+experiment=NAME] [GROUP=OPTION ...] [KEY=VALUE ...]",
        "",
        (module.__doc__ or task.__doc__ or "").strip(),
        "",
        "Groups and their options:",
        *(f"  {group:<21} {', '.join(options(group))}" for group in groups()),
        "",
        "--cfg job      print the composed config instead of running (any of its KEYs can be set, dots go down)",
        "-m             run every combination of comma-separated values",
        "--hydra-help   Hydra's own flags",
    ]
    return "\n".join(lines)


def _reporting(task: Task) -> Task:
    """``task``, with a failure reported at once: Hydra stays silent until the last job of a multirun."""

    @wraps(task)
    def job(cfg: DictConfig) -> Any:
        try:
            with console.output():
                return task(cfg)
        except Exception as error:
            hydra_cfg = HydraConfig.get()
            if hydra_cfg.mode == RunMode.MULTIRUN:
                given = " ".join(secret.masked(hydra_cfg.overrides.task))
                print(f"job {hydra_cfg.job.num} failed: {given}", file=sys.stderr)
                if _report(error) is None:
                    traceback.print_exc()
                error.reported = True  # type: ignore[attr-defined]
            elif (status := _report(error)) is not None:
                sys.exit(status)
            raise

    return job


def _report(error: Exception, config_name: str = "config") -> int | None:
    """Print a user's error; ``None`` (and nothing printed) for a bug."""
    message = explain(error, config_name)
    if message is None:
        return None
    if not getattr(error, "reported", False):
        if os.environ.get("SLIMEXP_TRACEBACK") == "1":
            print(secret.redacted("".join(traceback.format_exception(error))), file=sys.stderr)
        shown = "\n".join(console.printable(line, None) for line in message.splitlines())  # a file's words may be in it
        print(f"error: {shown}", file=sys.stderr)
    return console.USER_ERROR


def explain(error: BaseException, config_name: str = "config") -> str | None:
    """What a user is told of ``error``, without secrets; ``None`` where it is a bug."""
    told = _explain(error, config_name)
    return None if told is None else secret.redacted(told)


def _explain(error: BaseException, config_name: str) -> str | None:
    if match := re.search(r"Ambiguous value for argument '(.*)'$", str(error), re.MULTILINE):
        way = f"quote it: {quoted}" if (quoted := _quoted(match[1])) else "put it in quotes"
        what = f"'{_masked(match[1])}' has several values"
        return f"{what}: add --multirun to run each, or, where the comma is part of one, {way}"
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error, config_name)
    if isinstance(error, (MissingMandatoryValue, InterpolationKeyError, InterpolationResolutionError)):
        return str(error).strip()
    if isinstance(error, InstantiationException):
        return str(error) if build.refused(error.__cause__) else None
    if isinstance(error, OverrideParseException):
        return _unread(error)
    if isinstance(error, (ConfigError, CompactHydraException, YAMLError)):
        return str(error)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "\n".join(override.nameless(override.given(sys.argv[1:]), options)) or str(error)
    if isinstance(error, ValueError) and _is_ours(error):
        return str(error)
    cfg: Any = HydraConfig.instance().cfg  # before a job it has no folder yet
    folder = None if cfg is None else OmegaConf.select(cfg, "hydra.runtime.output_dir")
    told = console.disk_fault(error, folder, setting="runs=FOLDER")
    if told is None and isinstance(error, OSError) and error.filename and _is_of_hydra(error):
        return f"cannot write to {error.filename} ({error.strerror}): choose a folder of your own by runs=FOLDER"
    if told is None and isinstance(error, PermissionError) and error.filename:
        return f"no access to {error.filename} ({error.strerror})"
    return told


def _unread(error: OverrideParseException) -> str:
    if (shown := _masked(error.override)) != error.override:
        return f"cannot read '{shown}': put it in quotes"
    if quoted := override.quoted(error.override):
        return f"cannot read '{error.override}': where its value is text, quote it: {quoted}"
    return f"cannot read '{error.override}': {str(error).splitlines()[0]}"


def _masked(text: str) -> str:
    return secret.masked([text])[0]


def _quoted(text: str) -> str:
    """As ``override.quoted``; nothing where that would show a secret."""
    return override.quoted(text) if _masked(text) == text else ""


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this package raised ``error``: then it is meant for the user."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and Path(frames[-1][0].f_code.co_filename).is_relative_to(_PACKAGE)


def _is_of_hydra(error: BaseException) -> bool:
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
    overrides = override.given(sys.argv[1:])
    wrong: list[str] = []
    cfg = DictConfig({})
    while match := re.match(r"Could not override '(.+?)'", text):
        if match[1] in wrong:
            return text  # it stands in a file
        wrong.append(match[1])
        overrides = [item for item in overrides if override.key(item) != match[1].partition("@")[0]]
        try:
            cfg, text = compose([override.first(item) for item in overrides], config_name), ""
        except ConfigCompositionException as error:
            cfg, text = DictConfig({}), str(error)
    keys = [path for path, _, _ in binding.items(cfg)]
    return "\n".join(_nearest(key, keys) for key in wrong)


def _of_sweeper() -> list[str]:
    """Keys of our own sweeper: a composed config is without its ``hydra`` node."""
    node = DictConfig(OmegaConf.load(composition.CONF_DIR / "hydra" / "sweeper" / f"{_PARETO}.yaml"))
    return [f"hydra.sweeper.{path}" for path, _, _ in binding.items(node) if not path.startswith(("_", "defaults"))]


def _nearest(wrong: str, keys: Sequence[str]) -> str:
    if wrong in (others := _of_sweeper()) and f"hydra/sweeper={_PARETO}" not in sys.argv:
        return f"'{wrong}' is a setting of another sweeper: add hydra/sweeper={_PARETO}"
    return override.nearest(wrong, [*keys, *others], options, groups())
