"""A process that fails leaves the group without the others, which may never answer again."""

import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from slimexp.host import process_group


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.Store]:
    """Where a process meets itself."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    yield dist.HashStore()
    if dist.is_initialized():
        dist.distributed_c10d._abort_process_group()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_exception_waits_for_no_orderly_end(
    store: dist.Store, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AssertionError("the others are waited for")

    monkeypatch.setattr(dist, "destroy_process_group", refuse)
    with pytest.raises(error, match="of training"), process_group.joined("gloo", store):
        assert dist.is_initialized()
        raise error("of training")
    assert not dist.is_initialized() and process_group.broadcast_object(1) == 1


def test_an_exception_waits_no_longer_than_a_moment_for_messages_that_are_under_way(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, abort = threading.Event(), dist.distributed_c10d._abort_process_group
    monkeypatch.setattr(process_group, "ABORTING_S", 0.1)
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", over.wait)
    try:
        with pytest.raises(ValueError, match="of training"), process_group.joined("gloo", store):
            raise ValueError("of training")
        assert process_group.size() == 1
    finally:
        over.set()
        abort()
        monkeypatch.undo()


def test_a_group_that_ends_well_can_be_joined_again(store: dist.Store) -> None:
    for _ in range(2):
        with process_group.joined("gloo", dist.HashStore()):
            assert process_group.broadcast_object("a") == "a"
        assert not dist.is_initialized()
