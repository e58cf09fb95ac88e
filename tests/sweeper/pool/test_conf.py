"""Every file of conf/hydra/sweeper/pool gives its pool all that the sweep itself does not."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from slimexp.config.composition import CONF_DIR

FILES = sorted((CONF_DIR / "hydra/sweeper/pool").glob("*.yaml"))


@pytest.mark.fast
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_binds(path: Path) -> None:
    node = OmegaConf.load(path)
    target = get_class(node.pop("_target_"))
    assert node.pop("_partial_") and target.__module__ == f"slimexp.sweeper.pool.{path.stem}"
    keys = {*inspect.signature(target).parameters}
    assert keys == {"workers", "threads", "prepare", *map(str, node)}
    assert all(hasattr(target, name) for name in ("free", "busy", "submit", "finished", "__enter__", "__exit__"))
