"""Weights go, figures stay, and nothing that somebody needs, works on or made by other means is touched."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from slimexp.clean import main
from slimexp.completion import store
from slimexp.completion.store import Text
from slimexp.record import record, removal
from slimexp.record.stage import RUNNING, Stage, at_work
from slimexp.serialization import manifest

POINTS = {"dense": (16.0, 0.01), "good": (4.0, 0.02), "bad": (8.0, 0.03), "small": (2.0, 0.04)}
KEYS = {name: hashlib.sha256(name.encode()).hexdigest()[:12] for name in (*POINTS, "torn", "other")}
TORN = f"run/distill-{KEYS['torn']}"


def stage(runs: Path, name: str) -> Path:
    return runs / f"run/prune-{KEYS[name]}"


def write_model(folder: Path, key: str, **changes: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 2_000_000)
    manifest = {"format": 1, "stages": [{"name": "prune", "key": key}], "files": ["model.safetensors"]}
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.fixture
def runs(tmp_path: Path, make_record: Callable[..., Any]) -> Path:
    """Four finished models, one of them dominated, and what a kill left of a fifth."""
    runs = tmp_path / "runs"
    dense = {"cer": 0.01, "disk_mb": 16.0}
    for number, (name, (size, cer)) in enumerate(POINTS.items()):
        write_model(stage(runs, name) / "artifact", KEYS[name])
        (stage(runs, name) / "lock").touch()
        (stage(runs, name) / "curves.jsonl").touch()
        changes = {"technique": "dense"} if name == "dense" else {"parent": KEYS["dense"]}
        row = make_record(
            KEYS[name], metrics={"cer": cer, "disk_mb": size}, baseline=dense, seed=0,
            artifact=f"run/prune-{KEYS[name]}/artifact", baseline_key=KEYS["dense"],
            config={"pipeline": {"prune": {"sparsity": number / 10}}}, **changes,
        )  # fmt: skip
        record.append(runs / record.FILE, row)
    torn = runs / TORN
    (torn / ".artifact.host.1.partial").mkdir(parents=True)
    (torn / "damaged-artifact").mkdir()
    names = (
        "checkpoint.ckpt",
        "checkpoint.9.partial",
        "damaged-artifact/manifest.json",
        "damaged-measures.json",
        "lock",
    )
    for name in (*names, ".artifact.host.1.partial/model.safetensors"):
        (torn / name).write_bytes(b"x" * 10)
    return runs


def artifacts(runs: Path) -> set[str]:
    return {name for name in POINTS if (stage(runs, name) / "artifact").is_dir()}


def tree(folder: Path) -> dict[str, Any]:
    """Everything below ``folder``: names, kinds, contents, times."""
    paths = sorted(folder.rglob("*"))
    content = {path: path.read_bytes() if path.is_file() and not path.is_symlink() else b"" for path in paths}
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_mtime_ns, content[path]) for path in paths
    }


def dominate(runs: Path, make_record: Callable[..., Any], name: str = "other", **changes: Any) -> None:
    """Record a model that the dense one beats."""
    row = make_record(KEYS[name], metrics={"cer": 0.05, "disk_mb": 20.0}, baseline_key=KEYS["dense"],
                      baseline={"cer": 0.01, "disk_mb": 16.0}, parent=KEYS["dense"], **changes)  # fmt: skip
    with (runs / record.FILE).open(
        "a"
    ) as file:  # as a stranger writes it: what readers refuse, slimexp does not append
        file.write(json.dumps(asdict(row)) + "\n")


def test_names_are_those_of_artifacts() -> None:
    """Read, not imported: cleaning needs no torch, whose import takes seconds."""
    assert manifest.NAME == removal.MANIFEST
    assert {manifest.NAME, manifest.TRAINING, manifest.DROPPED} == removal.BESIDE


def test_only_what_no_front_needs_goes_and_figures_stay(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(runs)
    assert main([str(runs), "--dominated"]) == 0
    assert "would remove" in capsys.readouterr().out and tree(runs) == before
    rows = record.read(runs)
    assert main([str(runs), "--dominated", "--yes"]) == 0
    assert "2.0 MB freed" in capsys.readouterr().out and artifacts(runs) == {"dense", "good", "small"}
    assert record.read(runs) == rows and (stage(runs, "bad") / "curves.jsonl").exists()
    assert (runs / TORN / "checkpoint.ckpt").exists()
    assert sorted(path.name for path in stage(runs, "bad").iterdir()) == ["curves.jsonl", "lock"]
    before = tree(runs)
    assert main([str(runs), "--dominated", "--yes"]) == 0  # nothing is left to do
    assert tree(runs) == before


def test_records_further_down_are_of_their_own_folder(runs: Path) -> None:
    runs.rename(runs.with_name("inner"))
    outer = runs.parent / "outer"
    outer.mkdir()
    (runs.parent / "inner").rename(outer / "inner")
    assert main([str(outer), "--dominated", "--yes"]) == 0
    assert artifacts(outer / "inner") == {"dense", "good", "small"}


def test_what_a_kill_left_goes(runs: Path) -> None:
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert [path.name for path in (runs / TORN).iterdir()] == ["lock"]
    assert artifacts(runs) == set(POINTS)


def test_what_a_process_works_on_stays(runs: Path) -> None:
    with Stage("distill", "torn", None, runs / TORN).alone():
        assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert (runs / TORN / "checkpoint.ckpt").exists()


def test_the_last_copy_of_a_model_stays(runs: Path) -> None:
    for name in ("bad", "good"):
        (stage(runs, name) / ".artifact.host.1.old").mkdir()
    (stage(runs, "bad") / "artifact").rename(stage(runs, "bad") / ".artifact.host.2.old")
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert (stage(runs, "bad") / ".artifact.host.2.old").is_dir()
    assert not (stage(runs, "good") / ".artifact.host.1.old").exists()


def test_half_a_model_is_never_taken_for_a_whole_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, **place: int) -> None:
        raise KeyboardInterrupt

    killed.avoids_symlink_attacks = True  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(SystemExit, match="130"):
        main([str(runs), "--dominated", "--yes"])
    assert artifacts(runs) == {"dense", "good", "small"}
    monkeypatch.undo()
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert not list(stage(runs, "bad").glob(".artifact*"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A model that this package wrote, and the user keeps elsewhere."""
    folder = tmp_path / "home" / f"prune-{KEYS['other']}"
    write_model(folder / "artifact", KEYS["other"])
    for name in ("lock", "checkpoint.ckpt", "checkpoint.1.partial"):
        (folder / name).write_bytes(b"mine")
    return folder


def _linked_model(runs: Path, victim: Path) -> str:
    (runs / "run" / victim.name).mkdir()
    (runs / "run" / victim.name / "lock").touch()
    (runs / "run" / victim.name / "artifact").symlink_to(victim / "artifact")
    return f"run/{victim.name}/artifact"


def _linked_stage(runs: Path, victim: Path) -> str:
    (runs / "run" / victim.name).symlink_to(victim)
    return f"run/{victim.name}/artifact"


def _linked_run(runs: Path, victim: Path) -> str:
    (runs / "mine").symlink_to(victim.parent)
    return f"mine/{victim.name}/artifact"


def _linked_weights(runs: Path, victim: Path) -> str:
    write_model(runs / "run" / victim.name / "artifact", KEYS["other"])
    (runs / "run" / victim.name / "lock").touch()
    (runs / "run" / victim.name / "artifact/model.safetensors").unlink()
    (runs / "run" / victim.name / "artifact/model.safetensors").symlink_to(victim / "artifact/model.safetensors")
    return f"run/{victim.name}/artifact"


def _linked_lock(runs: Path, victim: Path) -> str:
    write_model(runs / "run" / victim.name / "artifact", KEYS["other"])
    (runs / "run" / victim.name / "lock").symlink_to(victim / "lock")
    return f"run/{victim.name}/artifact"


def _linked_checkpoints(runs: Path, victim: Path) -> str:
    folder = runs / "run" / victim.name
    folder.mkdir()
    (folder / "lock").touch()
    for name in ("checkpoint.ckpt", "checkpoint.1.partial", ".artifact.host.1.partial"):
        (folder / name).symlink_to(victim / ("artifact" if name.startswith(".") else name))
    return f"run/{victim.name}/artifact"


@pytest.mark.parametrize(
    "attack",
    [
        lambda runs, victim: os.path.relpath(victim / "artifact", runs),
        lambda runs, victim: f"run/../../home/{victim.name}/artifact",
        lambda runs, victim: str(victim / "artifact"),
        lambda runs, victim: os.path.relpath(victim, runs),
        lambda runs, victim: "..",
        lambda runs, victim: ".",
        lambda runs, victim: "",
        lambda runs, victim: "run",
        lambda runs, victim: "run\0/artifact",
        lambda runs, victim: "\ud800",
        lambda runs, victim: "x/" * 5000,
        lambda runs, victim: ["run"],
        _linked_model,
        _linked_stage,
        _linked_run,
        _linked_weights,
        _linked_lock,
        _linked_checkpoints,
    ],
)
def test_what_lies_elsewhere_or_behind_a_link_stays(
    runs: Path, victim: Path, make_record: Callable[..., Any], attack: Callable[[Path, Path], Any]
) -> None:
    dominate(runs, make_record, artifact=attack(runs, victim))
    before, links = tree(victim.parent), {path for path in runs.rglob("*") if path.is_symlink()}
    assert main([str(runs), "--dominated", "--unfinished", "--yes"]) == 0
    assert tree(victim.parent) == before and links == {path for path in runs.rglob("*") if path.is_symlink()}
    assert artifacts(runs) == {"dense", "good", "small"}  # the others are seen to


@pytest.mark.parametrize("there", ["runs/evaluated", "elsewhere", "runs/run/prune-other"])
def test_what_was_only_measured_stays(runs: Path, make_record: Callable[..., Any], there: str) -> None:
    """A record of ``slimexp.evaluate`` names the user's own model."""
    folder = runs.parent / there
    write_model(folder, KEYS["other"])
    before = tree(folder)
    dominate(runs, make_record, artifact=os.path.relpath(folder, runs), stage="evaluate", technique="evaluate")
    assert main([str(runs), "--dominated", "--yes"]) == 0
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "none of this package"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "none of this package"),
        (lambda folder: (folder / "manifest.json").write_text('{"stages": [], "files": []}'), "of stage None"),
        (lambda folder: (folder / "manifest.json").write_text('{"stages": [3], "files": []}'), "of stage None"),
        (lambda folder: (folder / "manifest.json").write_text('{"stages": [{"key": 1}], "files": []}'), "of stage 1"),
        (lambda folder: (folder / "notes.md").write_text("mine"), "notes.md in it is not of this package"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "w"), "w in it is not of this package"),
    ],
)
def test_a_folder_that_no_stage_wrote_so_stays(
    runs: Path, change: Callable[[Path], Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stage(runs, "bad") / "artifact"
    change(folder)
    before = tree(runs)
    assert main([str(runs), "--dominated", "--yes"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stays")]
    assert why in line and tree(folder) == {
        name.removeprefix(f"run/{stage(runs, 'bad').name}/artifact/"): entry
        for name, entry in before.items()
        if f"{stage(runs, 'bad').name}/artifact/" in name
    }


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(runs: Path) -> None:
    for name in ("manifest.json", "../lock"):
        (stage(runs, "bad") / "artifact" / name).unlink()
        os.mkfifo(stage(runs, "bad") / "artifact" / name)
        assert main([str(runs), "--dominated", "--yes"]) == 0
    assert artifacts(runs) == set(POINTS)


@pytest.mark.parametrize("name", ["mine", "prune-mine", "prune-ABCDEF012345", f"prune-{KEYS['torn']}0"])
def test_a_folder_of_another_name_is_none_of_a_stage(runs: Path, name: str) -> None:
    (runs / TORN).rename(runs / "run" / name)
    before = tree(runs)
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert tree(runs) == before


@pytest.mark.parametrize(
    "name", ["checkpoint.best", "checkpoint.ckpt.bak", "my.ckpt", ".artifact.partial", "artifact.old"]
)
def test_a_name_that_no_stage_writes_stays(runs: Path, name: str) -> None:
    (runs / TORN / name).write_text("mine")
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert sorted(path.name for path in (runs / TORN).iterdir()) == sorted(["lock", name])


def test_nothing_is_created_where_nothing_goes(runs: Path) -> None:
    (runs / "notes").mkdir()
    (stage(runs, "bad") / "lock").unlink()
    before = tree(runs)
    for arguments in (["--dominated"], ["--unfinished"]):
        assert main([str(runs), *arguments]) == 0
    (runs / TORN / "lock").unlink()
    del before[f"{TORN}/lock"]
    before[TORN] = tree(runs)[TORN]
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert tree(runs) == before


@pytest.mark.parametrize(
    "named",
    [
        lambda model: str(model),
        lambda model: f"{model}/",
        lambda model: os.path.relpath(model),
        lambda model: "~/" + os.path.relpath(model, Path.home()),
        lambda model: str(model.parents[3] / "link"),
        lambda model: os.path.relpath(model, model.parents[2]),
        lambda model: os.path.relpath(model, model.parents[3]),
        lambda model: f"/on/another/machine/{model.parent.name}/artifact",
        lambda model: str(model / "model.safetensors"),
    ],
)
@pytest.mark.parametrize("place", ["model", "teacher", "list"])
def test_a_model_that_another_run_names_stays(
    runs: Path, make_record: Callable[..., Any], named: Callable[[Path], str], place: str
) -> None:
    model = stage(runs, "bad") / "artifact"
    (runs.parent / "link").symlink_to(model)
    text = named(model)
    config = {
        "model": {"model": {"path": text}},
        "teacher": {"pipeline": {"distill": {"teacher": {"path": text}}}},
        "list": {"pipeline": {"distill": {"teachers": [text]}}},
    }[place]
    record.append(runs / record.FILE, make_record("student", config=config))
    assert main([str(runs), "--dominated", "--yes"]) == 0
    assert artifacts(runs) == set(POINTS)


def test_a_model_that_another_axis_needs_stays(runs: Path) -> None:
    assert main([str(runs), "--dominated", "--x", "kept", "--y", "kept", "--yes"]) == 2  # one axis is no front
    assert main([str(runs), "--dominated", "--x", "bits", "--yes"]) == 2  # nobody measured it
    assert artifacts(runs) == set(POINTS)


def test_nothing_goes_while_a_sweep_is_on(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Stage("sweep", "", None, runs / "run/sweep").alone():
        assert main([str(runs), "--dominated", "--yes"]) == 2
    assert "a sweep is at work" in capsys.readouterr().err and artifacts(runs) == set(POINTS)


@pytest.mark.parametrize("relative", [".", "..", "inner"])
def test_nothing_goes_while_a_run_is_on(runs: Path, relative: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also between two stages, when no stage is locked."""
    (runs / "inner").mkdir()
    (runs / "inner" / record.FILE).write_bytes((runs / record.FILE).read_bytes())
    with at_work(runs), at_work(runs):
        assert main([str(runs / relative), "--dominated", "--unfinished", "--yes"]) == 2
        with Stage("prune", "", None, stage(runs, "good")).alone():
            assert main([str(runs), "--dominated", "--yes"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: a run is at work in {runs}: clean when it has ended"
    assert second == f"error: a run is at work in {stage(runs, 'good')}: clean when it has ended"
    assert artifacts(runs) == set(POINTS)
    assert main([str(runs), "--dominated", "--yes"]) == 0
    assert artifacts(runs) == {"dense", "good", "small"}


def test_a_run_begins_once_the_cleaning_is_done(runs: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from slimexp.record.stage import at_work\n"
        "with at_work(Path(sys.argv[1])): print('begun')"
    )
    with removal.alone(runs / RUNNING, create=True) as free:
        assert free
        process = subprocess.Popen([sys.executable, "-c", code, str(runs)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{runs} is being cleaned, waiting\n"
    assert process.communicate(timeout=20)[0] == "begun\n"


def test_what_cannot_be_removed_is_one_line_and_the_rest_goes(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.rename

    def refused(name: str, to: str, **places: int) -> None:
        if name == "checkpoint.ckpt":
            raise OSError(errno.EPERM, "Operation not permitted", name)
        real(name, to, **places)

    monkeypatch.setattr(os, "rename", refused)
    assert main([str(runs), "--unfinished", "--dominated", "--yes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"cannot remove {runs / TORN}/checkpoint.ckpt: Operation not permitted"
    assert sorted(path.name for path in (runs / TORN).iterdir()) == ["checkpoint.ckpt", "lock"]
    assert artifacts(runs) == {"dense", "good", "small"}


def test_files_of_others_stay(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    before = tree(runs)
    assert main([str(runs), "--dominated", "--unfinished"]) == 1
    assert capsys.readouterr().err.count("belongs to another user") == 6 and tree(runs) == before


def test_what_is_exchanged_in_between_stays(runs: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody puts a link in the place of the model after it was looked at."""
    folder, real = stage(runs, "bad") / "artifact", removal.remove

    def late(place: int, name: str, check: Callable[[str], int]) -> int:
        folder.rename(folder.with_name("aside"))
        folder.symlink_to(victim / "artifact")
        return real(place, name, check)

    monkeypatch.setattr(removal, "remove", late)
    before = tree(victim.parent)
    assert main([str(runs), "--dominated", "--yes"]) in (0, 1)
    assert tree(victim.parent) == before and folder.is_symlink()


def test_blocks_are_counted_once_and_only_where_they_are_freed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stage(runs, "bad") / "artifact"
    manifest = {"stages": [{"key": KEYS["bad"]}], "files": ["model.safetensors", "same", "sparse", "kept"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    os.link(folder / "model.safetensors", folder / "same")
    with (folder / "sparse").open("wb") as file:
        file.truncate(10**9)  # not a block of it is on the disk
    (runs.parent / "mine").write_bytes(b"x" * 3_000_000)
    os.link(runs.parent / "mine", folder / "kept")
    assert main([str(runs), "--dominated", "--yes"]) == 0
    assert "2.0 MB freed" in capsys.readouterr().out
    assert (runs.parent / "mine").read_bytes() == b"x" * 3_000_000


def test_what_is_young_stays(runs: Path) -> None:
    old = runs / TORN / "checkpoint.ckpt"
    os.utime(old, (time.time() - 3 * 86_400,) * 2)
    assert main([str(runs), "--unfinished", "--days", "2", "--yes"]) == 0
    assert not old.exists() and (runs / TORN / "checkpoint.9.partial").exists()


@pytest.mark.parametrize("days", ["-1", "nan", "-inf", "x"])
def test_a_wrong_age_is_one_error(runs: Path, days: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(runs), "--unfinished", f"--days={days}"])


def test_wrong_commands_are_one_error(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(runs)])
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--dominated"]) == 2
    assert main([str(runs / record.FILE), "--dominated"]) == 2
    assert "is a file: name the folder of the runs" in capsys.readouterr().err


def test_a_signal_ends_it_by_one_line(runs: Path) -> None:
    code = (
        "import os, signal, sys; from slimexp import clean\n"
        f"clean.load = lambda *a, **b: os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "sys.exit(clean.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs), "--dominated"], capture_output=True, text=True)
    assert done.returncode == 143 and done.stderr.startswith("terminated: ") and done.stderr.count("\n") == 1


# --- what is kept of teachers -----------------------------------------------------------------------------------------


@pytest.fixture
def cache(runs: Path) -> Path:
    """A teacher cache of two parts, one of them damaged, beside what a kill left and what is somebody's."""
    folder = runs / removal.CACHES / "0123456789ab"
    for name in ("part-000000", "part-000001", "damaged-part-000002", ".part-000003.77", "mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "values.npy").write_bytes(b"x" * 1000)
    for name in (removal.LOCK, removal.CACHE):
        (folder / name).write_text("")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_kept_of_teachers_goes_where_that_is_asked_for(
    runs: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(cache)
    assert main([str(runs), "--unfinished", "--dominated", "--yes"]) == 0 and names(cache) == before
    assert main([str(runs), "--caches"]) == 0 and names(cache) == before
    assert "part-000001" in capsys.readouterr().out
    assert main([str(runs), "--caches", "--yes"]) == 0
    assert names(cache) == [removal.CACHE, removal.LOCK, "mine"] and artifacts(runs) >= {"dense", "good", "small"}


def test_a_folder_that_only_looks_like_a_cache_stays(runs: Path, cache: Path) -> None:
    (cache / removal.CACHE).unlink()
    before = names(cache)
    assert main([str(runs), "--caches", "--yes"]) == 0 and names(cache) == before


def test_a_cache_that_is_filled_stays(runs: Path, cache: Path) -> None:
    with removal.alone(cache / removal.LOCK):
        assert main([str(runs), "--caches", "--yes"]) == 0
    assert (cache / "part-000000").is_dir()


def test_texts_that_a_teacher_wrote_go_with_caches_and_nothing_else_beside_them(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / removal.COMPLETIONS
    key, written_now = "0123456789abcdef", "fedcba9876543210"
    for name in (key, written_now):
        store.write(folder / f"{name}.jsonl", lambda: [Text(0, 0, "a", "b", True)])
    for name in (f"damaged-{key}.jsonl", f".77.{key}.jsonl", "mine.jsonl", "aaaaaaaaaaaaaaaa.jsonl"):
        (folder / name).write_text("x")
    before = names(folder)
    assert main([str(runs), "--unfinished", "--dominated", "--yes"]) == 0
    assert main([str(runs), "--caches"]) == 0 and names(folder) == before
    assert f"{key}.jsonl" in capsys.readouterr().out
    with removal.alone(folder / f"{written_now}.lock"):
        assert main([str(runs), "--caches", "--yes"]) == 0
    stays = {f"{key}.lock", f"{written_now}.lock", f"{written_now}.jsonl", "mine.jsonl", "aaaaaaaaaaaaaaaa.jsonl"}
    assert set(names(folder)) == stays
