"""Without a network what the hub alone has is one error at once."""

import os
import time
from collections.abc import Iterator

import pytest

from slimexp.host import hub

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    hub._answers.cache_clear()
    yield
    hub._answers.cache_clear()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Requests to the hub, none of which is answered."""
    seen: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            seen.append(url)
            raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    return seen


def test_the_hub_is_asked_once(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.time, "monotonic", lambda: 100.0)
    assert not hub.answers() and not hub.answers()
    assert requests == [constants.ENDPOINT]
    monkeypatch.setattr(hub.time, "monotonic", lambda: 200.0)
    assert not hub.answers()
    assert len(requests) == 2


def test_a_wish_to_be_offline_is_not_put_to_the_test(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.answers() and requests == []


def test_libraries_do_not_ask_a_hub_that_does_not_answer(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from transformers import AutoConfig

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    began = time.monotonic()
    with hub.reached():
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        with pytest.raises(OSError, match="couldn't find them in the cached files"):
            AutoConfig.from_pretrained("no/such-model")
        with pytest.raises(ConnectionError):
            datasets.load_dataset("no/such-dataset")
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    assert len(requests) == 1 and time.monotonic() - began < 5


def test_offline_ends_with_its_block_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(KeyError), hub.offline():
        assert constants.is_offline_mode() and datasets.config.HF_HUB_OFFLINE
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1", "for processes started here"
        raise KeyError
    assert not constants.is_offline_mode() and not datasets.config.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "0" and "HF_DATASETS_OFFLINE" not in os.environ


def test_the_way_out_is_named(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError("many\nlines")
    unreachable = hub.missing("a/b", "dataset", error, key="data.path")
    assert unreachable.startswith("https://") and "does not answer" in unreachable
    assert "`hf download a/b --repo-type dataset --local-dir FOLDER`" in unreachable and "data.path" in unreachable
    assert "HF_HOME" in unreachable and "HF_HUB_OFFLINE=1" in unreachable
    assert "there is no such folder; model.path takes" in hub.missing("./a", "model", error, key="model.path")
    monkeypatch.setattr(hub, "answers", lambda: True)
    refused = hub.missing("a", "model", error, key="model.path")
    assert "check the name" in refused and "hf auth login" in refused and "(OSError: many lines)" in refused
    monkeypatch.setattr(hub, "answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.missing("a", "model", error, key="model.path").startswith("HF_HUB_OFFLINE is set, and")
