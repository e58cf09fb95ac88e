"""What is shown while a run goes on: a Weights & Biases mirror, and curves in plain files.

The record is the truth; this mirrors it. A tracker never prompts, never blocks for long and never stops a
run: without an account, a network or a working W&B the run goes on, and one line says what became of it.
"""

import netrc
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import pytorch_lightning as pl

from slimexp.logger.base import Tracker
from slimexp.logger.curves import EPOCH
from slimexp.record.stage import Stopped

Mode = Literal["auto", "online", "offline", "disabled"]

INIT_SECONDS = 20.0  # a compute node without a way out must not hold up training
FINISH_SECONDS = 60.0  # what is not uploaded by then stays on disk for `wandb sync`
# W&B would keep the command's arguments and the repository's URL, and either may hold a password.
_NO_METADATA = {"x_disable_meta": True, "disable_git": True, "disable_code": True}
_ENVIRONMENT_MODES = {"dryrun": "offline", "run": "online"}  # W&B's older words


class Wandb(Tracker):
    """One Weights & Biases run per command; keys are prefixed by the stage.

    Args:
        project: W&B project.
        entity: W&B user or team; ``None`` for the account's own.
        group: Runs of one group are shown together.
        tags: Labels of the run.
        mode: ``auto`` is online where credentials are known without asking (``WANDB_API_KEY``, netrc, W&B
            settings), else offline. The environment's ``WANDB_MODE`` goes before.
        folder: Where W&B keeps its files (``<folder>/wandb``).

    Attributes:
        identity: W&B's ``id``, ``resume`` and ``job_type`` of a run that is written more than once.

    Raises:
        ValueError: Unknown mode, here or in ``WANDB_MODE``.
    """

    def __init__(
        self, *, project: str, entity: str | None, group: str | None, tags: Sequence[str], mode: Mode, folder: str
    ) -> None:
        self.project = project
        self.entity = entity
        self.group = group
        self.tags = list(tags)
        self.folder = Path(folder)
        self.mode = _mode(os.environ.get("WANDB_MODE") or mode)
        self.identity: dict[str, str] = {}
        self._run: Any = None
        self._name = ""

    def start(self, *, name: str, config: Mapping[str, Any]) -> None:
        if self.mode == "disabled" or getattr(pl.utilities.rank_zero_only, "rank", 0) != 0:
            return
        self._name = name
        why = "offline was asked for" if self.mode == "offline" else "" if _has_credentials() else "no account found"
        if not why:
            try:
                self._run = self._init("online", name, config)
                say(f"online at {self._run.url}")
                return
            except Exception as error:
                first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
                why = f"could not connect ({first_line[:120]})"
        self._run = self._guarded("start", lambda: self._init("offline", name, config))
        if self._run is not None:
            folder = min(self._run.settings.sync_dir, os.path.relpath(self._run.settings.sync_dir), key=len)
            say(f"{why}, writing offline; `wandb sync {folder}` uploads it later")

    def loggers(self, stage: str, curves: str | Path) -> list[pl.loggers.Logger]:
        loggers = super().loggers(stage, curves)
        if self._guarded("log", lambda: _define_axis(self._run, stage)):
            loggers.append(_StageLogger(self._run, stage, log=self._log))
        return loggers

    def summary(self, stage: str, metrics: Mapping[str, float]) -> None:
        values = {f"{stage}/{name}": value for name, value in metrics.items()}
        self._guarded("write the summary", lambda: self._run.summary.update(values))

    def artifact(self, stage: str, folder: str | Path) -> None:
        def reference() -> None:
            name = re.sub(r"[^\w.-]+", "_", f"{self._name}-{stage}")  # what W&B allows in a name
            artifact = wandb_module().Artifact(name, type="model", metadata={"stage": stage})
            artifact.add_reference(Path(folder).resolve().as_uri())
            self._run.log_artifact(artifact)

        self._guarded("refer to the artifact", reference)

    def finish(self) -> None:
        kind = sys.exc_info()[0]
        failed = kind is not None and not issubclass(kind, Stopped)
        self._guarded("finish", lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _log(self, row: Mapping[str, float]) -> None:
        self._guarded("log", lambda: self._run.log(dict(row)))

    def _init(self, mode: str, name: str, config: Mapping[str, Any]) -> Any:
        wandb = wandb_module()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"silent": True, "console": "off", "init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        settings |= _NO_METADATA
        known = wandb.Settings.model_fields  # older versions have no finish_timeout
        return wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            name=name,
            config=dict(config),
            dir=str(self.folder),
            mode=mode,
            reinit="finish_previous",  # jobs of a multirun share the process
            settings=wandb.Settings(**{name: value for name, value in settings.items() if name in known}),
            **self.identity,
        )

    def _guarded(self, action: str, call: Callable[[], Any]) -> Any:
        """``call()``, or one line and no more tracking where W&B fails; ``None`` before ``start``."""
        if self._run is None and action != "start":
            return None
        try:
            return call()
        except Exception as error:
            self._run = None
            say(f"could not {action} ({type(error).__name__}: {error}); the run goes on without it")
            return None


def _mode(word: str) -> Mode:
    mode = _ENVIRONMENT_MODES.get(word, word)
    if mode not in get_args(Mode):
        raise ValueError(f"the mode of W&B must be one of {', '.join(get_args(Mode))}, got {word!r}")
    return mode  # type: ignore[return-value]


def wandb_module() -> Any:
    """The library, imported late (0.9 s) and kept from writing to the console."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb


def _has_credentials() -> bool:
    """Whether W&B can go online without asking anyone for a key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    with suppress(Exception):  # an unreadable netrc or settings file is no account
        settings = wandb_module().setup().settings
        if settings.api_key:
            return True
        files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
        found = [path for name in files if (path := Path(name).expanduser()).exists()]
        return bool(found and netrc.netrc(found[0]).authenticators(urlsplit(settings.base_url).netloc))
    return False


def _define_axis(run: Any, stage: str) -> bool:
    """Draw the metrics of ``stage`` over its own optimizer steps."""
    run.define_metric(f"{stage}/step", hidden=True)
    run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return True


class _StageLogger(pl.loggers.WandbLogger):
    """Writes ``<stage>/<metric>`` over ``<stage>/step`` into a run that is open already."""

    def __init__(self, run: Any, stage: str, *, log: Callable[[dict[str, float]], None]) -> None:
        super().__init__(experiment=run, log_model=False)
        self._stage = stage
        self._log = log

    @pl.utilities.rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """The run's configuration is there already; a stage's module must not write over it."""

    @pl.utilities.rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = metrics if step is None else {**metrics, "step": step}
        self._log({f"{self._stage}/{name}": value for name, value in row.items() if name != EPOCH})


def say(line: str) -> None:
    print(f"W&B: {line}", file=sys.stderr, flush=True)
