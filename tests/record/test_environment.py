"""The environment that a record holds: honest about git, versions and hardware."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slimexp.record.environment import environment
from slimexp.record.record import Record

pytestmark = pytest.mark.fast


def test_environment_fits_a_record(
    make_record: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = environment()
    assert found["git"] is None
    assert found["versions"]["python"]
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gb"] > 0
    assert Record.from_json(make_record(**found).to_json()).hardware == found["hardware"]
