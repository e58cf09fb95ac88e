"""A Weights & Biases run that stops nothing: what fails is one line, and the work that it shows goes on without it."""

import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import pytorch_lightning as pl

from slimexp.logger.guarded import Guarded, say
from slimexp.record.stage import Stopped

Mode = Literal["auto", "online", "offline", "disabled"]

INIT_SECONDS = 20.0  # a compute node without a way out must not hold up training
FINISH_SECONDS = 60.0  # what is not uploaded by then stays on disk for `wandb sync`
# W&B would keep the command's arguments and the repository's URL, and either may hold a password.
_NO_METADATA = {"x_disable_meta": True, "disable_git": True, "disable_code": True}
_ENVIRONMENT_MODES = {"dryrun": "offline", "run": "online"}  # W&B's older words


class WandbRun(Guarded):
    """One run of Weights & Biases.

    Args:
        project: W&B project.
        entity: W&B user or team; ``None`` for the account's own.
        group: Name of a set of runs that are shown together; ``None`` for none.
        tags: Labels of the run.
        mode: ``auto`` is online where W&B finds credentials without a prompt (``WANDB_API_KEY``, netrc, W&B
            settings), else offline. The environment's ``WANDB_MODE`` goes before.
        folder: Folder below which W&B keeps its files, in ``wandb``.

    Attributes:
        identity: W&B's ``id``, ``resume`` and ``job_type`` of a run that is written more than once.

    Raises:
        ValueError: ``mode`` or ``WANDB_MODE`` is unknown.
    """

    label = "W&B"

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
        self.name = ""

    def start(self, *, name: str, config: Mapping[str, Any]) -> None:
        """Open the run, online or offline; only the first process of a training does.

        Args:
            name: Name of the run.
            config: Configuration, as ``secret.written`` gives it.
        """
        if self.mode == "disabled" or getattr(pl.utilities.rank_zero_only, "rank", 0) != 0:
            return
        self.name = name
        why = "offline was asked for" if self.mode == "offline" else "" if _has_credentials() else "no account found"
        if not why:
            try:
                self.run = self._init("online", name, config)
                say(self.label, f"online at {self.run.url}")
                return
            except Exception as error:
                first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
                why = f"could not connect ({first_line[:120]})"
        self.run = self.guarded("start", lambda: self._init("offline", name, config))
        if self.run is not None:
            folder = min(self.run.settings.sync_dir, os.path.relpath(self.run.settings.sync_dir), key=len)
            say(self.label, f"{why}, writing offline; `wandb sync {folder}` uploads it later")

    def finish(self) -> None:
        """Close the run, as failed where an exception is on its way."""
        kind = sys.exc_info()[0]
        failed = kind is not None and not issubclass(kind, Stopped)
        self.guarded("finish", lambda: self.run.finish(exit_code=int(failed)))
        self.run = None

    def _init(self, mode: str, name: str, config: Mapping[str, Any]) -> Any:
        wandb = wandb_module()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"silent": True, "console": "off", "init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        settings |= _NO_METADATA
        fields = wandb.Settings.model_fields  # older versions have no finish_timeout
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
            settings=wandb.Settings(**{name: value for name, value in settings.items() if name in fields}),
            **self.identity,
        )


def _mode(word: str) -> Mode:
    mode = _ENVIRONMENT_MODES.get(word, word)
    if mode not in get_args(Mode):
        raise ValueError(f"the mode of W&B must be one of {', '.join(get_args(Mode))}, got {word!r}")
    return mode  # type: ignore[return-value]


def wandb_module() -> Any:
    """The library ``wandb``, imported late (0.9 s) and kept from writing to the console."""
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
        existing = [path for name in files if (path := Path(name).expanduser()).exists()]
        return bool(existing and netrc.netrc(existing[0]).authenticators(urlsplit(settings.base_url).netloc))
    return False
