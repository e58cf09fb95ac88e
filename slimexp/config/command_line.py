"""The command line: turns a function of a config into a program whose user errors are one message each."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from slimexp.config import allowlist, composition, override, secret
from slimexp.config.build import ConfigError
from slimexp.config.composition import groups, options
from slimexp.config.explanation import explain
from slimexp.host import console

Task = Callable[[DictConfig], Any]

_MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of which Hydra does one
_COMPLETION = ("install", "uninstall", "query")  # the last is what a shell asks, with the line as far as it is typed
_SHELLS = ("bash", "fish", "zsh")


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
    secret.remember(override.assignments(sys.argv[1:]))
    try:
        _check_arguments()
        _check_hydra(config_name)
        run()
    except Exception as error:
        status = _report(error, config_name)
        if status is None and not getattr(error, "reported", False):
            raise
        sys.exit(status or 1)


def _check_arguments() -> None:
    """Refuse unknown flags, for which Hydra prints a page, and arguments without a key, at which it breaks.

    Raises:
        ConfigError: There are such; the message has one line for each.
    """

    def refuse(message: str) -> NoReturn:
        _, colon, words = message.partition("unrecognized arguments: ")
        if colon and all("=" in word and not word.startswith("-") for word in words.split()):
            raise ConfigError(f"write flags such as -m before all overrides: '{words}' stands behind one")
        raise ConfigError(f"{message} (--help tells what there is)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    arguments = parser.parse_args()
    if arguments.resolve and not arguments.cfg:
        raise ConfigError("--resolve needs --cfg job")
    flags = [f"--{name.replace('_', '-')}" for name in _MODES if getattr(arguments, name)]
    if len(flags) > 1:
        raise ConfigError(f"{' and '.join(flags)} cannot be combined: leave one of them out")
    if arguments.shell_completion and not _is_completion(arguments.overrides):
        raise ConfigError("--shell-completion needs install=bash, fish or zsh (or uninstall=...)")
    if faults := list(override.keyless(arguments.overrides)):
        raise ConfigError("\n".join(faults))


def _is_completion(overrides: Sequence[str]) -> bool:
    """Whether ``overrides`` are one command that Hydra's completion knows, of a shell that it knows."""
    commands = [(name, shell) for name, _, shell in (word.partition("=") for word in overrides) if name in _COMPLETION]
    return len(commands) == 1 and all(
        shell in _SHELLS and (name != "query" or "COMP_LINE" in os.environ) for name, shell in commands
    )


def _check_hydra(config_name: str) -> None:
    """Refuse a ``_target_`` of Hydra's own node that is no component: Hydra builds it before a task sees its config.

    Raises:
        ConfigError: There are such; the message has one line for each.
    """
    if not any("hydra" in word or word.startswith(("-c", "--config")) for word in sys.argv[1:]):
        return  # composing takes a quarter of a second
    cfg = _with_hydra(config_name)
    if cfg is not None and (faults := list(allowlist.faults(cfg.hydra, composition.CONF_DIR, "hydra"))):
        raise ConfigError("\n".join(faults))


def _with_hydra(config_name: str) -> DictConfig | None:
    """The config of the command line with Hydra's own node; ``None`` where it does not compose, as Hydra reports."""
    arguments = sys.argv[1:]
    folders = [word for flag, word in pairwise(arguments) if flag in ("-cd", "--config-dir")]
    folders += [word.partition("=")[2] for word in arguments if word.startswith(("-cd=", "--config-dir="))]
    search = [f"hydra.searchpath=[{','.join(f'file://{os.path.abspath(folder)}' for folder in folders)}]"]
    try:
        overrides = [override.first(word) for word in override.assignments(arguments)] + (search if folders else [])
        with (
            warnings.catch_warnings(action="ignore"),
            hydra.initialize_config_dir(str(composition.CONF_DIR), version_base="1.3"),
        ):
            return hydra.compose(config_name, overrides, return_hydra_config=True)
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
                overrides = " ".join(secret.masked(hydra_cfg.overrides.task))
                print(f"job {hydra_cfg.job.num} failed: {overrides}", file=sys.stderr)
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
