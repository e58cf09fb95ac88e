"""Configuration: where it lives, what its root holds, and whether it is right, said before anything is loaded.

``conf/`` is the registry of components. ``check`` binds every key to its constructor's signature without importing it,
``build`` constructs, and ``main`` turns a function of a config into a program whose user errors are one message each.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial, wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from slimexp import binding, console, override
from slimexp.signature import TargetNotFound, lineage

_PACKAGE = Path(__file__).parent
_PARETO = "pareto"  # the sweeper that ships with the package
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"  # in a wheel, in a checkout

Task = Callable[[DictConfig], Any]


class ConfigError(ValueError):
    """Something the user can put right in a config or on the command line."""


@dataclass
class CheckpointInterval:
    """How often an unfinished stage is written down.

    Attributes:
        every_steps: Least optimizer steps between two checkpoints.
        every_seconds: Least seconds between two.
    """

    every_steps: int = MISSING
    every_seconds: float = MISSING


@dataclass
class Run:
    """Root keys of a run.

    Attributes:
        seed: Of every random choice.
        runs: Folder that all runs go to.
        name: Folder of this run below ``runs``.
        save_dtype: Floating-point type of saved weights, a torch name such as ``bfloat16``.
        resume: Whether finished stages and checkpoints are used again.
        compile: Whether training goes through ``torch.compile``.
        checkpoint: How often an unfinished stage is written down.
        model: Where the model comes from.
        baseline: The dense model that stages are compared with and taught by; ``None`` for ``model`` itself.
        data: The corpus.
        pipeline: Stage name -> technique, in order.
        trainer: The machine: devices, precision, strategy.
        callback: Name -> Lightning callback.
        logger: Where curves go.
        measure: Name -> measure of every finished stage.
    """

    seed: int = MISSING
    runs: str = MISSING
    name: str = MISSING
    save_dtype: str = MISSING
    resume: bool = MISSING
    compile: bool = MISSING
    checkpoint: CheckpointInterval = field(default_factory=CheckpointInterval)
    model: Any = MISSING
    baseline: Any = None
    data: Any = MISSING
    pipeline: dict[str, Any] = field(default_factory=dict)
    trainer: Any = MISSING
    callback: dict[str, Any] = field(default_factory=dict)
    logger: Any = None
    measure: dict[str, Any] = field(default_factory=dict)


@dataclass
class Evaluation:
    """Root keys of an evaluation.

    Attributes:
        name: Of the record.
        runs: Folder whose records it joins.
        seed: Of every random choice.
        device: Where the model runs, a torch name such as ``cpu`` or ``cuda``.
        model: What is measured.
        baseline: The dense model it is compared with; ``None`` for itself if it was not compressed.
        data: The corpus.
        measure: Name -> measure.
    """

    name: str = MISSING
    runs: str = MISSING
    seed: int = MISSING
    device: str = MISSING
    model: Any = MISSING
    baseline: Any = None
    data: Any = MISSING
    measure: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(name="schema", node=Run)
ConfigStore.instance().store(name="evaluation_schema", node=Evaluation)


def compose(overrides: Sequence[str] = (), config_name: str = "config") -> DictConfig:
    """The config that a command line would give."""
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra.compose(config_name, list(overrides))


def build(node: Any, **overrides: Any) -> Any:
    """Construct what ``node`` describes, and everything below it.

    Args:
        node: A config node; one without ``_target_`` gives a dict or list of what is in it.
        overrides: Runtime objects, handed to the constructor as they are (Hydra would copy them into the config).

    Raises:
        ConfigError: A constructor refused its values.
    """
    where = node._get_full_key(None) if OmegaConf.is_config(node) else ""
    try:
        if not overrides:
            return hydra.utils.instantiate(node, _convert_="all")
        deferred = hydra.utils.instantiate(node, _convert_="all", _partial_=True)
        return partial(deferred, **overrides) if node.get("_partial_", False) else deferred(**overrides)
    except Exception as error:
        nested = isinstance(error, InstantiationException)
        cause = error.__cause__ if nested else error
        if not _refused(cause):
            raise
        key = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE) if nested else None
        raise ConfigError(_at(key[1] if key else where, cause)) from cause


def _refused(error: BaseException | None) -> bool:
    """Whether a constructor refused its values; Lightning has an exception of its own for it."""
    return isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException"


def _at(key: str, message: object) -> str:
    return f"{key}: {message}" if key else str(message)


def check(cfg: DictConfig, schema: type = Run) -> None:
    """Hold a composed config against its schema and the signatures of everything it names; import nothing.

    Args:
        cfg: As composed, without the ``hydra`` node.
        schema: Dataclass of the root keys.

    Raises:
        ConfigError: All that is wrong, one line each.
    """
    known = [item.name for item in fields(schema)]
    errors = []
    for path, parent, key in binding.items(cfg):
        if parent is cfg and key not in known:
            errors.append(binding.unknown(str(key), "", known, also=groups()))
        elif parent is cfg and OmegaConf.is_missing(cfg, key) and options(str(key)):
            errors.append(f"{key} is not chosen: add {key}=<option>; options: {', '.join(options(str(key)))}")
        else:
            errors += binding.faults(path, parent, key, CONF_DIR)
    if "pipeline" in known and isinstance(cfg.get("pipeline"), DictConfig):
        errors += _pipeline_faults(cfg.pipeline)
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))


def chosen(group: DictConfig) -> dict[str, DictConfig]:
    """Components of a group by name; what an experiment sets of one that was not chosen is no component."""
    return {str(name): node for name, node in group.items() if "_target_" in node}


def groups() -> list[str]:
    """The config groups."""
    return sorted({path.parent.relative_to(CONF_DIR).as_posix() for path in CONF_DIR.glob("*/**/*.yaml")})


def options(group: str) -> list[str]:
    """What can be chosen in a config group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _pipeline_faults(pipeline: DictConfig) -> Iterator[str]:
    if not pipeline:
        yield (
            "pipeline is empty: add pipeline=<option> or +experiment=<option>; "
            f"pipelines: {', '.join(options('pipeline'))}; experiments: {', '.join(options('experiment'))}"
        )
        return
    right = [str(stage) for stage in pipeline if _is_technique(pipeline._get_node(stage))]
    for stage in map(str, pipeline):
        if stage not in right:
            close = get_close_matches(stage, right, n=1)
            hint = f"; did you mean 'pipeline.{close[0]}'?" if close else ""
            yield f"pipeline.{stage} is not a technique: its _target_ must be a class of slimexp.technique{hint}"


def _is_technique(node: object) -> bool:
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    try:
        return any(name.startswith("slimexp.technique.") for name in lineage(str(node["_target_"])))
    except (TargetNotFound, OmegaConfBaseException):
        return True  # reported by itself


# --- main ------------------------------------------------------------------------------------------------------------


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
    run = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(_reporting(task))
    try:
        run()
    except Exception as error:
        status = _report(error, config_name)
        if status is None and not getattr(error, "reported", False):
            raise
        sys.exit(status or 1)


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
                print(f"job {hydra_cfg.job.num} failed: {' '.join(hydra_cfg.overrides.task)}", file=sys.stderr)
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
            print(override.masked("".join(traceback.format_exception(error))), file=sys.stderr)
        print(f"error: {message}", file=sys.stderr)
    return console.USER_ERROR


def explain(error: BaseException, config_name: str = "config") -> str | None:
    """What a user is told of ``error``; ``None`` where it is a bug."""
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error, config_name)
    if isinstance(error, (MissingMandatoryValue, InterpolationKeyError, InterpolationResolutionError)):
        return str(error).strip()
    if isinstance(error, InstantiationException):
        return str(error) if _refused(error.__cause__) else None
    if isinstance(error, OverrideParseException):
        return override.unreadable(error.override, str(error).splitlines()[0])
    if isinstance(error, (ConfigError, CompactHydraException, YAMLError)):
        return str(error)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "\n".join(override.nameless(override.given(sys.argv[1:]), options)) or str(error)
    if isinstance(error, ValueError) and _is_ours(error):
        return str(error)
    folder = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else None
    return console.disk_fault(error, folder, setting="runs=FOLDER")


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this package raised ``error``: then it is meant for the user."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and Path(frames[-1][0].f_code.co_filename).is_relative_to(_PACKAGE)


def _explain_missing(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    choices = list(error.options or options(group))
    if not name or not choices:
        return str(error).partition("\nConfig search path")[0]
    close = get_close_matches(name, choices, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"no {group} is called '{name}'{hint or ';'} available: {', '.join(choices)}"


def _explain_composition(error: ConfigCompositionException, config_name: str) -> str:
    cause = str(error.__cause__).splitlines()[:1] if isinstance(error.__cause__, OmegaConfBaseException) else []
    text = "\n".join([str(error), *cause]).strip()
    if re.match(r"Could not override '", text):
        return _explain_overrides(text, config_name)
    if match := re.search(r"config group '(.+)' does not exist", text):
        close = get_close_matches(match[1], groups(), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"there is no config group '{match[1]}': {hint}groups: {', '.join(groups())}"
    if match := re.match(r"In '(.+)': ConfigKeyError raised.*\nKey '(.+)' not in 'Run'", text):
        return f"conf/{match[1]}.yaml: {binding.unknown(match[2], '', [item.name for item in fields(Run)])}"
    return text


def _explain_overrides(text: str, config_name: str) -> str:
    """Name the nearest key to every misspelt one, by composing again without them."""
    overrides = override.given(sys.argv[1:])
    wrong: list[str] = []
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
    node = DictConfig(OmegaConf.load(CONF_DIR / "hydra" / "sweeper" / f"{_PARETO}.yaml"))
    return [f"hydra.sweeper.{path}" for path, _, _ in binding.items(node) if not path.startswith(("_", "defaults"))]


def _nearest(wrong: str, keys: Sequence[str]) -> str:
    if wrong in (others := _of_sweeper()) and f"hydra/sweeper={_PARETO}" not in sys.argv:
        return f"'{wrong}' is a setting of another sweeper: add hydra/sweeper={_PARETO}"
    return override.nearest(wrong, [*keys, *others], options, groups())
