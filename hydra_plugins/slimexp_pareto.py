"""``hydra/sweeper=pareto``: Hydra takes plugins from this package alone, and imports them at each start."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override


class ParetoSweeper(Sweeper):
    """Hands a multirun to ``slimexp.sweeper.command``.

    Args:
        settings: See ``conf/hydra/sweeper/pareto.yaml``.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        pool = config.hydra.runtime.choices.get("hydra/sweeper/pool")
        if _forget_password(config) and pool == "ray":
            from slimexp.config.build import ConfigError

            raise ConfigError(
                "hydra.sweeper.storage holds a password, and Ray shows a command line to whoever sees the cluster: "
                "keep the password in ~/.pgpass"
            )
        self.composed = partial(hydra_context.config_loader.load_sweep_config, config)

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        from slimexp.sweeper.command import sweep

        return sweep(arguments, self.composed, self.settings)


def _forget_password(config: DictConfig) -> bool:
    """Take the password of a database out of what others write down: this process' arguments, and Hydra's config.

    Workers get the arguments of their controller, and W&B records those of a process. Returns whether there was one.
    """
    from slimexp.config.secret import holds_password, shown

    arguments = [shown(argument) if "hydra" in argument else argument for argument in sys.argv]
    if typed := arguments != sys.argv:
        sys.argv[:] = arguments
        print(
            "warning: whoever may list this machine's processes can read the password in hydra.sweeper.storage: leave "
            "it out and keep it in ~/.pgpass, or write 'hydra.sweeper.storage=${oc.env:NAME}' and export NAME",
            file=sys.stderr,
        )
    with flag_override(config, ["readonly", "struct"], False):
        if isinstance(url := OmegaConf.select(config, "hydra.sweeper.storage"), str) and holds_password(url):
            config.hydra.sweeper.storage = "***"
        given = config.hydra.overrides.hydra
        config.hydra.overrides.hydra = [shown(one) for one in given]
    return typed
