"""The conf folder, the schemas of a config's root, and the config that a command line composes."""

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from slimexp.config import schema
from slimexp.config.schema import Evaluation, Run, Search

PACKAGE = Path(__file__).parents[1]
CONF_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in a wheel, in a checkout

OmegaConf.register_new_resolver("home", schema.home, replace=True)  # Hydra makes the runs folder before a task can
OmegaConf.register_new_resolver("trainer_here", lambda: "gpu" if has_cuda() else "cpu", replace=True)
OmegaConf.register_new_resolver("on_gpu", lambda yes, no, *, _root_: yes if trains_on_gpu(_root_) else no, replace=True)
ConfigStore.instance().store(name="schema", node=Run)
ConfigStore.instance().store(name="evaluation_schema", node=Evaluation)
ConfigStore.instance().store(name="search_schema", node=Search)


def has_cuda() -> bool:
    """Whether torch sees a CUDA device: the one question about a config that takes torch, for those that pose it."""
    import torch

    return torch.cuda.is_available()


def trains_on_gpu(cfg: DictConfig) -> bool:
    """Whether the trainer of a whole config computes on a GPU."""
    accelerator = (cfg.get("trainer") or {}).get("accelerator", "auto")
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and has_cuda())


def compose(overrides: Sequence[str] = (), config_name: str = "config") -> DictConfig:
    """The config that a command line would give."""
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra.compose(config_name, list(overrides))


def chosen(group: DictConfig) -> dict[str, DictConfig]:
    """Components of a group by name, without the keys that an experiment sets of a component that was not chosen."""
    return {str(name): node for name, node in group.items() if "_target_" in node}


def groups() -> list[str]:
    """The config groups."""
    return sorted({path.parent.relative_to(CONF_DIR).as_posix() for path in CONF_DIR.glob("*/**/*.yaml")})


def options(group: str) -> list[str]:
    """Options of a config group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
