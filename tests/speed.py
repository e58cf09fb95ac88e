"""What makes tests faster, and none of them otherwise: what every run does anew is done once for all of them."""

import copy
import gc
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

MANY = 50  # modules, as a library has


@pytest.fixture(autouse=True, scope="session")
def _frozen() -> Iterator[dict[str, int]]:
    """Whether objects are frozen, and how many modules were there when they were.

    To count the objects takes as long as a pass over them, and every run asks whether there are any: it is told 0 or 1.
    """
    known = {"objects": 0, "modules": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "get_freeze_count", wraps(gc.get_freeze_count)(lambda: known["objects"]))
        yield known


@pytest.fixture(autouse=True)
def _libraries_frozen(_frozen: dict[str, int]) -> None:
    """A pass of the garbage collector looks at what tests made, not at the million objects of the imported libraries.

    Every stage of a run makes some passes: more than half the time of a tiny one. Many modules are first imported by
    the first run.
    """
    if len(sys.modules) > _frozen["modules"] + MANY:
        gc.collect()
        gc.freeze()
        _frozen |= {"objects": 1, "modules": len(sys.modules)}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen objects are counted whenever that is asked for, as they are outside of tests."""
    monkeypatch.setattr(gc, "get_freeze_count", gc.get_freeze_count.__wrapped__)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True, scope="session")
def _commit_looked_up_once() -> Iterator[None]:
    """Records have the commit of their folder, and no test makes one there: three calls of git for every record."""
    from slimexp.host import working_copy
    from slimexp.record import environment

    state = cache(lambda folder: working_copy.state())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "working_copy", SimpleNamespace(state=lambda: state(os.getcwd())))
        yield


@pytest.fixture(autouse=True, scope="session")
def _parsed_once() -> Iterator[None]:
    """Give a copy of what was read from the same text before: Hydra parses some 20 files of conf/ for every config."""
    from omegaconf import OmegaConf

    load, read = OmegaConf.load, {}

    def parse(file: Any) -> Any:
        if isinstance(file, str | Path):
            text = Path(file).read_bytes()
        else:
            text = file.read()
            file.seek(0)  # an error names the file
        if text not in read:
            read[text] = load(file)
        return copy.deepcopy(read[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(parse))
        yield


@pytest.fixture(autouse=True, scope="session")
def _choices_when_needed() -> Iterator[None]:
    """Collect what was chosen so far only for a defaults list that refers to it.

    Hydra makes a config of it at every defaults list, and reads it at those: a quarter of the time to compose a config.
    """
    from hydra._internal import defaults_list

    collect = defaults_list._create_interpolation_map

    def where_needed(overrides: Any, defaults: Sequence[Any], self_added: bool) -> Any:
        return collect(overrides, defaults, self_added) if any(one.is_interpolation() for one in defaults) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults_list, "_create_interpolation_map", where_needed)
        yield


@pytest.fixture(autouse=True, scope="session")
def _merged_once() -> Iterator[None]:
    """Choose and merge the same options of conf/ once: two thirds of the time to compose a config.

    Configs that differ in values alone have the same options. Tests that read other folders merge these every time.
    """
    from hydra._internal import config_loader_impl
    from hydra._internal.defaults_list import Overrides

    from slimexp.config import composition

    ours = str(composition.CONF_DIR)  # tests set it to folders of their own
    loader = config_loader_impl.ConfigLoaderImpl
    choose, merge = config_loader_impl.create_defaults_list, loader._compose_config_from_defaults_list
    lists, merged = dict[str, Any](), dict[str, bytes]()

    def is_ours(repo: Any) -> bool:
        files = {source.path for source in repo.get_sources() if source.scheme() == "file"}
        return files == {ours}

    def choose_once(repo: Any, config_name: Any, overrides_list: Any, **how: Any) -> Any:
        groups = [one.input_line for one in overrides_list if repo.group_exists(one.key_or_group)]
        key = repr((config_name, groups, how, composition.has_cuda()))  # which ${trainer_here:} goes by
        if key not in lists or not is_ours(repo):
            found = choose(repo=repo, config_name=config_name, overrides_list=overrides_list, **how)
            if not is_ours(repo):
                return found
            lists[key] = found
        return replace(lists[key], config_overrides=Overrides(repo, overrides_list).config_overrides)

    def merge_once(self: Any, defaults: Any, repo: Any) -> Any:
        if not is_ours(repo):
            return merge(self, defaults, repo)
        if (key := repr(defaults)) not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(merged[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_loader_impl, "create_defaults_list", choose_once)
        patch.setattr(loader, "_compose_config_from_defaults_list", merge_once)
        yield
