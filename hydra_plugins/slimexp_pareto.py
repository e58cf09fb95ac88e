"""``hydra/sweeper=pareto``: Hydra takes plugins from this package alone, and imports them at each start."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ParetoSweeper(Sweeper):
    """Hands a multirun to ``slimexp.sweeper.command``.

    Args:
        settings: Settings of the sweep, the keys of ``conf/hydra/sweeper/pareto.yaml``.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from slimexp.config.build import ConfigError
        from slimexp.config.password import mask_process

        pool = config.hydra.runtime.choices.get("hydra/sweeper/pool")
        if mask_process(config) and pool == "ray":
            raise ConfigError(
                "hydra.sweeper.storage holds a password, and Ray shows a command line to whoever sees the cluster: "
                "keep the password in ~/.pgpass"
            )
        self.composed = partial(hydra_context.config_loader.load_sweep_config, config)

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        from slimexp.host.progress import working

        with working("importing the libraries"):
            from slimexp.sweeper.command import sweep

        return sweep(arguments, self.composed, self.settings)
