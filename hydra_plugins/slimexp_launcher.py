"""``hydra/launcher=joblib``, ``ray``, ``submitit_local`` and ``submitit_slurm``: published launchers, set up here."""

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

_ON_THIS_MACHINE = ("joblib", "submitit_local")  # the others ask a cluster for GPUs


class OwnLauncherConfigs(SearchPathPlugin):
    """Drops the configs that those packages register: Hydra would take them as schemas of conf/hydra/launcher/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        registered = ConfigStore.instance().repo["hydra"]["launcher"]
        for name in ("joblib", "ray", "submitit_local", "submitit_slurm"):
            registered.pop(f"{name}.yaml", None)


def _check_borrowed(plugin: object) -> None:
    """Refuse a plugin that is no launcher of ``conf/hydra/launcher``: it would be imported and called.

    Raises:
        ConfigError: ``conf/hydra/launcher`` does not name it.
    """
    from slimexp.config.build import ConfigError
    from slimexp.config.composition import CONF_DIR

    files = sorted((CONF_DIR / "hydra" / "launcher").glob("*.yaml"))
    if plugin not in [OmegaConf.load(file).launcher.plugin for file in files]:
        raise ConfigError(
            "hydra.launcher.plugin must be as conf/hydra/launcher has it, "
            f"got {plugin!r}: leave it out, and choose by hydra/launcher={'|'.join(file.stem for file in files)}"
        )


def _warn_of_shared_gpu(name: str, config: DictConfig) -> None:
    """Say which launcher lets all trials share a GPU, and what gives each its own."""
    from slimexp.config.composition import trains_on_gpu

    if name in _ON_THIS_MACHINE and trains_on_gpu(config):
        print(
            f"hydra/launcher={name} gives trials no GPU of their own, they share the first: hydra/sweeper=pareto gives "
            "each worker its own",
            file=sys.stderr,
        )


class Borrowed(Launcher):
    """A launcher of another package; where that is not installed, an error says how to install it.

    Args:
        plugin: Module and class of the launcher, one that ``conf/hydra/launcher`` names.
        extra: Extra of slimexp that installs it.
        settings: Settings of the launcher.
    """

    def __init__(self, *, plugin: str, extra: str, **settings: Any) -> None:
        self.plugin = plugin
        self.extra = extra
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from slimexp.host.extra import require

        _check_borrowed(self.plugin)
        module, _, name = self.plugin.rpartition(".")
        chosen = config.hydra.runtime.choices["hydra/launcher"]
        by = f"hydra/launcher={chosen}"
        self.launcher: Launcher = getattr(require(module, extra=self.extra, by=by), name)(**self.settings)
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        _warn_of_shared_gpu(chosen, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; those that failed are listed once more at the end, where all can be seen.

        Raises:
            ConfigError: A job's process died, with which these launchers give up.
        """
        from slimexp.config.build import ConfigError
        from slimexp.config.explanation import explain
        from slimexp.config.secret import masked

        try:
            jobs = self.launcher.launch(job_overrides, initial_job_idx)
        except Exception as error:
            if explain(error) is not None:
                raise
            raise ConfigError(
                f"a job's process is gone ({type(error).__name__}: {' '.join(str(error).split())[:400]}); what is "
                "finished is kept, and the same command goes on from there"
            ) from error
        for number, job in enumerate(jobs, start=initial_job_idx):
            if job.status == JobStatus.FAILED:
                why = job._return_value  # the property raises it
                message = explain(why) or f"{type(why).__name__}: {why}"
                overrides = " ".join(masked(job.overrides or ()))
                print(f"job {number} failed: {overrides}\nerror: {message}", file=sys.stderr)
        return jobs
