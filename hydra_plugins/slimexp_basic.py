"""``hydra/sweeper=basic``, Hydra's own, which every multirun has that asks for no other: without secrets."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins import basic_launcher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class MaskingSweeper(BasicSweeper):
    """Masks what Hydra writes down and prints of a command line before it does so: a kill leaves no secret behind."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.given = config
        self.config = _masked(config)  # until it is saved
        logging.getLogger(basic_launcher.__name__).addFilter(_redact)

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        """The next jobs; multirun.yaml is written by then, and they are composed from what was given."""
        from slimexp.config import secret

        self.config = self.given
        batch = super().get_job_batch()
        secret.remember([word for job in batch for word in job])
        return batch


@dataclass
class MaskingSweeperConf(BasicSweeperConf):
    """Hydra's settings. A file of this name in conf/ would be held against Hydra's schema, with a warning."""

    _target_: str = "hydra_plugins.slimexp_basic.MaskingSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=MaskingSweeperConf, provider="slimexp")


def _masked(config: DictConfig) -> DictConfig:
    """A config to be saved: the same where no secret was typed, for it is read best with its interpolations."""
    from slimexp.config import secret
    from slimexp.config.password import HIDDEN

    dumped = OmegaConf.create(OmegaConf.to_yaml(config))
    hidden = {name: secret.masked(words) for name, words in dumped.hydra.overrides.items()}
    if hidden == OmegaConf.to_container(dumped.hydra.overrides):
        return config
    dumped.hydra.overrides = hidden
    dumped.hydra.job.override_dirname = HIDDEN  # the overrides once more, in one word
    return OmegaConf.create(secret.written(dumped))


def _redact(line: logging.LogRecord) -> bool:
    from slimexp.config import secret

    line.msg, line.args = secret.redacted(line.getMessage()), ()
    return True
