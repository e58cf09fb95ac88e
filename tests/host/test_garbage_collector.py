"""No pass while it is paused, none over older objects while they are frozen, and all as before in the end."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from slimexp.host.garbage_collector import frozen, paused

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("counted")]


class Node:
    """An object that a reference to itself keeps alive."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    before = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if before else gc.disable)()


def test_no_pass_is_made_while_it_is_paused() -> None:
    passes: list[str] = []

    def count(phase: str, info: dict[str, int]) -> None:
        passes.append(phase)

    def fill() -> None:
        assert len([[] for _ in range(10 * gc.get_threshold()[0])])

    gc.callbacks.append(count)
    try:
        with paused():
            fill()
            assert passes == []
        fill()
        assert passes
    finally:
        gc.callbacks.remove(count)


def test_it_goes_on_after_an_error() -> None:
    with pytest.raises(ValueError, match="no"), paused():
        assert not gc.isenabled()
        raise ValueError("no")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with paused():
        pass
    assert not gc.isenabled()


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is frozen, which for other tests the libraries are."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_only_what_came_later_is_collected_while_the_rest_is_frozen(thawed: None) -> None:
    older = Node()
    seen = weakref.ref(older)
    with frozen():
        del older
        newer = weakref.ref(Node())
        gc.collect()
        assert seen() is not None and newer() is None
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_what_a_caller_has_frozen_stays_frozen(thawed: None) -> None:
    older = Node()
    seen = weakref.ref(older)
    with frozen():
        with frozen():
            later = weakref.ref(Node())
            gc.collect()
            assert later() is None
        del older
        gc.collect()
        assert seen() is not None
    gc.collect()
    assert seen() is None
