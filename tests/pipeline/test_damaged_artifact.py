"""Damaged artifacts are reported in one line, set aside and made again; models of the user stay as they are."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp import artifact
from slimexp.file import integrity
from slimexp.serialization import manifest

Make = Callable[..., Any]
Damage = Callable[[Path], None]
LAST = "prune"
OF_CONTENT = ["cut", "cut_at_the_end", "empty", "other", "flip", "longer"]
OF_KIND = ["folder", "pipe", "link_to_nothing"]
ALL = [*OF_CONTENT, "missing", *OF_KIND]
FILES = ["model.safetensors", artifact.TRAINING, "config.json", "tokenizer.json", artifact.MANIFEST]


@pytest.mark.parametrize("damage", ALL, indirect=["damage"])
@pytest.mark.parametrize("file", FILES)
def test_every_damage_of_every_file_is_seen(finished: Any, tmp_path: Path, file: str, damage: Damage) -> None:
    shutil.copytree(finished[0].stage() / "artifact", tmp_path / "artifact")
    manifest.check(tmp_path / "artifact")
    damage(tmp_path / "artifact" / file)
    with pytest.raises(integrity.Damaged, match=rf"^({file} |it has other content)") as error:
        manifest.check(tmp_path / "artifact")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((file, "flip") for file in FILES),
        *(("model.safetensors", damage) for damage in ("cut", "missing", "folder")),
        *(
            pytest.param("model.safetensors", damage, marks=pytest.mark.slow)  # as seen above
            for damage in ALL
            if damage not in ("flip", "cut", "missing", "folder")
        ),
    ],
    indirect=["damage"],
)
def test_a_finished_model_that_is_damaged_is_made_again(
    finished: Any, copy: Make, again: Make, fits: list[str], file: str, damage: Damage
) -> None:
    run = copy(finished[0])
    damage(run.stage() / "artifact" / file)
    (line,) = again(run)
    assert line.startswith(f"{LAST}: its artifact is damaged (")
    assert line.endswith(f"): set aside as {run.stage() / 'damaged-artifact'}, done again")
    assert fits == ["Prune"]


@pytest.mark.parametrize("damage", ["flip", "missing", "folder"], indirect=["damage"])
def test_a_dense_model_that_is_damaged_is_made_again_and_what_followed_is_not(
    finished: Any, copy: Make, again: Make, fits: list[str], damage: Damage
) -> None:
    run = copy(finished[0])
    damage(run.stage("dense") / "artifact/model.safetensors")
    (line,) = again(run)
    assert line.startswith("dense: its artifact is damaged (model.safetensors ") and fits == []


def test_what_a_user_reads_of_a_file_that_was_cut(finished: Any, copy: Make, again: Make) -> None:
    run = copy(finished[0])
    file = run.stage() / "artifact/model.safetensors"
    size = file.stat().st_size
    os.truncate(file, 12)
    assert f"its artifact is damaged (model.safetensors has 12 of {size} bytes): set aside" in again(run)[0]


def one_file(path: Path) -> None:
    integrity.remove(path)
    path.write_text("no folder")


def empty_folder(path: Path) -> None:
    integrity.remove(path)
    path.mkdir()


def of_another_stage(path: Path) -> None:
    (dense,) = path.parents[1].glob("dense-*/artifact")
    shutil.rmtree(path)
    shutil.copytree(dense, path)


@pytest.mark.parametrize(
    "damage",
    [
        one_file,
        of_another_stage,
        *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("pipe", "link_to_nothing", empty_folder)),
    ],
    indirect=["damage"],
)
def test_what_is_no_model_of_the_stage_gives_way_to_it(
    finished: Any, copy: Make, again: Make, fits: list[str], damage: Damage
) -> None:
    run = copy(finished[0])
    damage(run.stage() / "artifact")
    assert len(again(run)) == 1 and fits == ["Prune"]


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '"text"', '{"format": NaN}', "[" * 100_000, "\ud800", {"max_length": 8},
                {"stages": []}, {"digests": {}}, {"digests": []}, {"key": None}],
)  # fmt: skip
def test_a_manifest_of_other_content_is_damaged(finished: Any, tmp_path: Path, content: Any) -> None:
    shutil.copytree(finished[0].stage() / "artifact", tmp_path / "artifact")
    file = tmp_path / "artifact" / artifact.MANIFEST
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    file.write_text(content, errors="surrogatepass")
    with pytest.raises(integrity.Damaged):
        manifest.check(tmp_path / "artifact")


def test_files_that_are_none_of_ours_are_left_alone(finished: Any, copy: Make, again: Make, fits: list[str]) -> None:
    run = copy(finished[0])
    extra = run.stage() / "artifact/notes.txt"
    extra.write_text("notes")
    assert run.pipeline().run() == finished[1]
    assert fits == [] and extra.read_text() == "notes"


def test_a_manifest_without_digests_is_accepted(finished: Any, copy: Make, fits: list[str]) -> None:
    run = copy(finished[0])
    for file in run.runs.rglob(artifact.MANIFEST):
        stored = json.loads(file.read_text())
        file.write_text(json.dumps({name: stored[name] for name in stored.keys() - {"digests", "sha256", "key"}}))
    assert run.pipeline().run() == finished[1] and fits == []


def test_a_model_that_was_deleted_is_made_again_without_a_word_of_damage(
    finished: Any, copy: Make, again: Make, fits: list[str]
) -> None:
    run = copy(finished[0])
    shutil.rmtree(run.stage("dense") / "artifact")
    assert again(run) == [] and fits == []


def test_only_the_newest_of_what_was_damaged_is_kept(finished: Any, copy: Make, again: Make) -> None:
    run = copy(finished[0])
    weights = run.stage() / "artifact/model.safetensors"
    os.truncate(weights, 12)
    assert len(again(run)) == 1
    weights.unlink()
    (weights / "below").mkdir(parents=True)
    assert len(again(run)) == 1
    assert (run.stage() / "damaged-artifact/model.safetensors/below").is_dir()
    assert [path.name for path in run.stage().glob("*damaged*")] == ["damaged-artifact"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (artifact.MANIFEST, "empty"),
        (artifact.MANIFEST, "pipe"),
        ("tokenizer.json", "flip"),
        ("model.safetensors", "missing"),
    ]
    + [("model.safetensors", damage) for damage in (*OF_CONTENT, *OF_KIND)],
    indirect=["damage"],
)
def test_a_damaged_model_of_the_user_is_one_error_and_stays_as_it_is(
    finished: Any, new_run: Make, tmp_path: Path, file: str, damage: Damage
) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished[0].stage("dense") / "artifact", model)
    damage(model / file)
    before = sorted((path.name, path.lstat().st_mtime_ns) for path in model.iterdir())
    baseline = ["model@baseline=pretrained", f"baseline.path={model}", "baseline.max_length=16"]
    for role in ([f"model.path={model}"], *([baseline] if damage.__name__ == "flip" else [])):
        run = new_run(tmp_path / "runs", *role)
        with pytest.raises(
            ValueError, match=rf"model '{model}' is damaged \(.*\): copy or train the model anew"
        ) as error:
            run.pipeline()
        assert "\n" not in str(error.value)
    assert sorted((path.name, path.lstat().st_mtime_ns) for path in model.iterdir()) == before
