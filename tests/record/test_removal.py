"""Removal: only whole models that this package wrote, through descriptors, and with the bytes that it frees."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slimexp.record import removal
from slimexp.record.record import FILE
from slimexp.record.removal import NotRemovable

pytestmark = pytest.mark.fast

KEY = "0123456789ab"


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """Folder of a stage whose model has one file of weights."""
    folder = tmp_path / "runs" / "run" / f"prune-{KEY}"
    (folder / "artifact").mkdir(parents=True)
    (folder / "lock").touch()
    (tmp_path / "runs" / FILE).touch()
    (folder / "artifact" / "model.safetensors").write_bytes(b"x" * 10_000)
    manifest = {"stages": [{"key": KEY}], "files": ["model.safetensors"]}
    (folder / "artifact" / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def place(stage: Path) -> Iterator[int]:
    """Descriptor of that folder."""
    with removal.opened(stage, stage.parents[1]) as descriptor:
        yield descriptor


def test_stages_are_named_locked_and_below_records(stage: Path) -> None:
    runs = stage.parents[1]
    (stage.parent / "prune-none").mkdir()
    (stage.parent / "quantize-0123456789ab").mkdir()  # without a lock
    assert list(removal.stages(runs)) == [stage]
    (runs / FILE).unlink()
    assert list(removal.stages(runs)) == []


def test_a_model_of_the_stage_may_go(place: int) -> None:
    removal.check_model(place, "artifact", KEY, root=False)


def test_a_model_of_another_stage_may_not(place: int) -> None:
    with pytest.raises(NotRemovable, match=f"its manifest.json is of stage {KEY}"):
        removal.check_model(place, "artifact", "another", root=False)
    removal.check_model(place, "artifact", "another", root=True)


def test_a_model_with_a_file_of_somebody_else_may_not(stage: Path, place: int) -> None:
    (stage / "artifact" / "notes.txt").touch()
    with pytest.raises(NotRemovable, match=r"notes\.txt in it is not of this package"):
        removal.check_model(place, "artifact", KEY, root=False)


def test_a_manifest_that_is_too_large_keeps_its_model(stage: Path, place: int) -> None:
    with (stage / "artifact" / "manifest.json").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(NotRemovable, match=r"its manifest\.json is too large to be one"):
        removal.check_model(place, "artifact", KEY, root=False)


@pytest.mark.parametrize("text", ["", "[]", '{"stages": 1, "files": []}', '{"stages": []}', "[" * 100_000])
def test_a_manifest_that_is_damaged_keeps_its_model(stage: Path, place: int, text: str) -> None:
    (stage / "artifact" / "manifest.json").write_text(text)
    with pytest.raises(NotRemovable, match=r"its manifest\.json"):
        removal.check_model(place, "artifact", KEY, root=True)


def test_a_link_on_the_way_is_not_followed(stage: Path) -> None:
    runs = stage.parents[1]
    (runs / "link").symlink_to(stage.parent)
    with (
        pytest.raises(NotRemovable, match="link is a link or a file"),
        removal.opened(runs / "link" / stage.name, runs),
    ):
        pass


def test_what_a_check_refuses_has_its_name_again(stage: Path, place: int) -> None:
    def check(name: str) -> int:
        assert name in os.listdir(place) and name != "artifact"
        raise NotRemovable("exchanged")

    with pytest.raises(NotRemovable, match="exchanged"):
        removal.remove(place, "artifact", check)
    assert (stage / "artifact" / "model.safetensors").exists()
    freed = removal.size(place, "artifact")
    assert freed >= 10_000
    assert removal.remove(place, "artifact", lambda name: removal.size(place, name)) == freed
    assert os.listdir(place) == ["lock"]


def test_a_lock_that_a_process_holds_is_reported(stage: Path) -> None:
    with removal.alone(stage / "lock") as first, removal.alone(stage / "lock") as second:
        assert (first, second) == (True, False)
    with pytest.raises(NotRemovable, match="cannot be opened"), removal.alone(stage / "nothing"):
        pass
