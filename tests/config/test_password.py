"""A password in a URL is recognised in every form, and masked in whatever is shown of it."""

import sys
from typing import Any

import pytest
import sqlalchemy
from omegaconf import OmegaConf

from slimexp.config.password import HIDDEN, holds_password, mask_process, masked_message, masked_override, masked_text
from slimexp.config.secret import redacted

pytestmark = pytest.mark.fast

SECRETS = ("hunter2", "hunter%202", "hunter 2", "hunter+2")
WITH = [
    "postgresql://ann:hunter2@host:5432/sweeps",
    "postgresql+psycopg://ann:hunter2@host/sweeps",
    "postgresql://:hunter2@host/sweeps",
    "postgresql://ann:hunter%202@host/sweeps",
    "postgresql://ann:hunter2@x@host/sweeps",
    "postgresql://ann:hunter2/x@host/sweeps",
    "postgresql://host/sweeps?user=ann&password=hunter2",
    "postgresql://ann@host/sweeps?sslmode=require&sslpassword=hunter2",
    "postgresql://ann@host/sweeps?PASSWORD=hunter2",
    "mysql://ann:hunter2@host/sweeps",
    "mysql+pymysql://ann:hunter2@host:3306/sweeps?charset=utf8",
    "mysql://host/sweeps?passwd=hunter2",
    "sqlite://ann:hunter2@/sweeps.db",
    "sqlite:////tmp/nowhere/sweeps.db?password=hunter2",
    "oracle://ann:hunter2@host/sweeps",
    "nonsense://ann:hunter2@host/sweeps",
    "postgresql://ann:hunter2@host:port/sweeps",
    "postgresql://ann:hunter2{x}@127.0.0.1:1/sweeps",
]
WITHOUT = [
    "postgresql://ann@host:5432/sweeps",
    "postgresql://host/sweeps?sslmode=require",
    "sqlite:////tmp/nowhere/sweeps.db",
    "mysql://ann@host/sweeps",
    "a=1,2",
    "model.path=/a/b:c",
]


def is_kept_back(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("url", WITH)
def test_an_override_is_shown_without_it(url: str) -> None:
    for override in (f"hydra.sweeper.storage={url}", f"++hydra.sweeper.storage='{url}'"):
        assert holds_password(override) and masked_override(override).endswith("hydra.sweeper.storage=***")
    assert masked_override(f"hydra.sweeper={{storage: '{url}'}}") == "hydra.sweeper=***"


@pytest.mark.parametrize("url", WITH)
def test_a_text_is_masked(url: str) -> None:
    masked = redacted(text := f"could not override 'storag={url}'\nby '{url}', see https://host/path")
    assert masked == masked_text(text) and is_kept_back(masked)
    assert masked.endswith("see https://host/path") and masked.count(HIDDEN) >= 2


@pytest.mark.parametrize("url", WITHOUT)
def test_what_holds_none_is_shown_whole(url: str) -> None:
    assert not holds_password(url) and masked_override(f"x={url}") == f"x={url}" == redacted(f"x={url}")


@pytest.mark.parametrize("url", ["postgresql://ann:hunter%202@h/s", "postgresql://ann@h/s?password=hunter%202"])
@pytest.mark.parametrize("secret", SECRETS[1:])
def test_the_message_of_a_library_is_masked(url: str, secret: str) -> None:
    assert masked_message(f"cannot reach '{secret}' at h", sqlalchemy.make_url(url)) == "cannot reach '***' at h"


def test_without_one_nothing_is_said(monkeypatch: Any, capsys: Any) -> None:
    line = ["train", "-m", f"hydra.sweeper.storage={WITHOUT[0]}", "logger.url=https://ann:x@host"]
    monkeypatch.setattr(sys, "argv", list(line))
    given = {"task": [], "hydra": [line[2]]}
    mask_process(OmegaConf.create({"hydra": {"sweeper": {"storage": WITHOUT[0]}, "overrides": given}}))
    assert sys.argv == line and capsys.readouterr().err == ""


@pytest.mark.parametrize("url", [WITH[0], WITH[3], WITH[6]])
def test_a_process_shows_it_no_more(url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "-m", f"hydra.sweeper.storage={url}", "seed=1,2"])
    given = {"task": ["seed=1,2"], "hydra": ["hydra/sweeper=pareto", f"hydra.sweeper.storage={url}"]}
    config = OmegaConf.create({"hydra": {"sweeper": {"storage": url}, "overrides": given}})
    OmegaConf.set_readonly(config, True)
    assert mask_process(config)
    assert sys.argv == ["train", "-m", f"hydra.sweeper.storage={HIDDEN}", "seed=1,2"]
    assert is_kept_back(OmegaConf.to_yaml(config)) and config.hydra.overrides.task == ["seed=1,2"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: whoever may list this machine's processes") and is_kept_back(warning)
