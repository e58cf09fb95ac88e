"""What is damaged is said in one line, set aside and done again: the same weights, never a traceback."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slimexp import artifact
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.file import integrity
from slimexp.format import manifest
from slimexp.logger.curves import Curves
from slimexp.pipeline import checkpoint
from slimexp.pipeline.pipeline import Pipeline
from slimexp.record import record

Make = Callable[..., Any]
Damage = Callable[[Path], None]
LAST = "prune"


# --- ways in which a file is damaged --------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_at_the_end(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_bytes(bytes(reversed(path.read_bytes())))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"}")


def missing(path: Path) -> None:
    integrity.remove(path)


def folder(path: Path) -> None:
    integrity.remove(path)
    (path / "below").mkdir(parents=True)


def pipe(path: Path) -> None:
    integrity.remove(path)
    os.mkfifo(path)


def link_to_nothing(path: Path) -> None:
    integrity.remove(path)
    path.symlink_to("nowhere")


def huge(path: Path) -> None:
    os.truncate(path, integrity.LARGEST + 1)


OF_CONTENT = [cut, cut_at_the_end, empty, other, flip, longer]
OF_KIND = [folder, pipe, link_to_nothing]


def named(value: Any) -> str:
    return getattr(value, "__name__", str(value))


# --- a finished run, copied for every damage ------------------------------------------------------------------------


class Run:
    """A dense model and its pruning, in a folder of its own."""

    def __init__(self, arguments: list[str], runs: Path) -> None:
        self.arguments = [*arguments, f"runs={runs}"]
        self.runs = runs

    def pipeline(self, *more: str) -> Pipeline:
        cfg = compose([*self.arguments, *more])
        check(cfg)
        return Pipeline(cfg, overrides=[])

    def stage(self, name: str = LAST) -> Path:
        (found,) = self.runs.glob(f"run/{name}-*")
        return found

    def files(self) -> dict[str, bytes]:
        """What must be the same: all of the artifacts, and the curves."""
        paths = [*self.runs.glob("run/*/artifact/*"), *self.runs.glob("run/*/curves.jsonl")]
        return {str(path.relative_to(self.runs)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def arguments(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("home")
    family = tiny("seq2seq")
    family.model.save_pretrained(home / "dense")
    family.tokenizer.save_pretrained(home / "dense")
    rows = [f"{i} one,{i} two,{i},no" for i in range(40)]
    (home / "table.csv").write_text("\n".join(["source,target,text,label", *rows]) + "\n")
    return [
        "name=run", "model=pretrained", f"model.path={home / 'dense'}", "model.max_length=16", "data=files",
        f"data.path={home / 'table.csv'}", "data.task=seq2seq", f"pipeline={LAST}", "logger=none", "trainer=fast",
        "measure=[size]", f"pipeline.{LAST}.steps=5", f"pipeline.{LAST}.batch_size=4", f"pipeline.{LAST}.every=1",
        f"pipeline.{LAST}.optimizer.lr=0.01", "checkpoint.every_steps=1", "checkpoint.every_seconds=0",
        "trainer.log_every_n_steps=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, float]]:
    """A run to its end, and its figures."""
    run = Run(arguments, tmp_path_factory.mktemp("finished"))
    return run, run.pipeline().run()


@pytest.fixture(scope="module")
def stopped(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was killed at its third step."""
    run = Run(arguments, tmp_path_factory.mktemp("stopped"))
    with pytest.MonkeyPatch.context() as patch:
        start = checkpoint.Checkpoint.on_train_batch_start

        def dying(self: Any, *of_batch: Any) -> None:
            start(self, *of_batch)
            if of_batch[-1] == 3:
                raise KeyboardInterrupt

        patch.setattr(checkpoint.Checkpoint, "on_train_batch_start", dying)
        with pytest.raises(KeyboardInterrupt):
            run.pipeline().run()
    return run


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Run], Run]:
    def make(run: Run) -> Run:
        shutil.copytree(run.runs, tmp_path / "runs", dirs_exist_ok=True)
        return Run(run.arguments[:-1], tmp_path / "runs")

    return make


@pytest.fixture
def again(
    finished: tuple[Run, dict[str, float]], fits: list[str], capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Run], list[str]]]:
    """Repeat a run's command: it ends as the undamaged one did; returns what it said of damage."""

    def repeat(run: Run) -> list[str]:
        capsys.readouterr()
        straight, figures = finished
        assert run.pipeline().run() == figures
        assert run.files() == straight.files()
        found, expected = ({row.key: row.metrics for row in record.read(one.runs)} for one in (run, straight))
        assert found == expected
        said = capsys.readouterr()
        assert said.err == ""
        return [line for line in said.out.splitlines() if " is damaged (" in line]

    yield repeat


# --- artifacts ------------------------------------------------------------------------------------------------------

FILES = ["model.safetensors", artifact.TRAINING, "config.json", "tokenizer.json", artifact.MANIFEST]
ALL = [*OF_CONTENT, missing, *OF_KIND]


@pytest.mark.parametrize("damage", ALL, ids=named)
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
    [*((file, flip) for file in FILES), *(("model.safetensors", damage) for damage in ALL if damage is not flip)],
    ids=named,
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


@pytest.mark.parametrize("damage", [flip, missing, folder], ids=named)
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


@pytest.mark.parametrize("damage", [one_file, pipe, link_to_nothing, empty_folder, of_another_stage], ids=named)
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
    extra.write_text("mine")
    assert run.pipeline().run() == finished[1]
    assert fits == [] and extra.read_text() == "mine"


def test_a_manifest_without_digests_is_accepted(finished: Any, copy: Make, fits: list[str]) -> None:
    run = copy(finished[0])
    for file in run.runs.rglob(artifact.MANIFEST):
        held = json.loads(file.read_text())
        file.write_text(json.dumps({name: held[name] for name in held.keys() - {"digests", "sha256", "key"}}))
    assert run.pipeline().run() == finished[1] and fits == []


def test_a_model_that_was_deleted_is_made_again_without_a_word_of_damage(
    finished: Any, copy: Make, again: Make, fits: list[str]
) -> None:
    run = copy(finished[0])
    shutil.rmtree(run.stage("dense") / "artifact")
    assert again(run) == [] and fits == []


def test_only_the_newest_of_what_was_damaged_is_kept(finished: Any, copy: Make, again: Make) -> None:
    run = copy(finished[0])
    for damage in (cut, folder):
        damage(run.stage() / "artifact/model.safetensors")
        assert len(again(run)) == 1
    assert (run.stage() / "damaged-artifact/model.safetensors/below").is_dir()
    assert [path.name for path in run.stage().glob("*damaged*")] == ["damaged-artifact"]


# --- checkpoints ----------------------------------------------------------------------------------------------------


def flip_a_weight(path: Path) -> None:
    """One bit of the largest part."""
    import zipfile

    with zipfile.ZipFile(path) as file:
        part = max(file.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[part.header_offset + 200 + part.file_size // 2] ^= 1
    path.write_bytes(content)


def of_another_key(path: Path) -> None:
    import torch

    content = torch.load(path, weights_only=True)
    content["callbacks"]["Checkpoint"]["key"] = "another"
    torch.save(content, path)


def of_a_negative_step(path: Path) -> None:
    import torch

    content = torch.load(path, weights_only=True)
    content["global_step"] = -5
    torch.save(content, path)


def of_no_training(path: Path) -> None:
    import torch

    torch.save({"weights": torch.ones(3)}, path)


def a_pickle(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps({"global_step": 3}))


OF_CHECKPOINTS = [flip_a_weight, of_another_key, of_a_negative_step, of_no_training, a_pickle]


@pytest.mark.parametrize("damage", [cut, cut_at_the_end, empty, other, *OF_CHECKPOINTS, *OF_KIND], ids=named)
def test_a_checkpoint_that_is_damaged_is_not_gone_on_from(
    stopped: Run, copy: Make, again: Make, fits: list[str], damage: Damage
) -> None:
    run = copy(stopped)
    damage(run.stage() / "checkpoint.ckpt")
    (line,) = again(run)
    assert line.startswith(f"{LAST}: its checkpoint.ckpt is damaged (") and line.endswith("done again")
    assert os.path.lexists(run.stage() / "damaged-checkpoint.ckpt")


@pytest.mark.parametrize("change", ["fewer", "none", "of another shape"])
def test_a_checkpoint_of_another_model_is_one_error_and_then_made_anew(
    stopped: Run, copy: Make, again: Make, change: str
) -> None:
    """Whole, of this stage by its key, and yet without the weights that its model has."""
    import torch

    run = copy(stopped)
    path = run.stage() / "checkpoint.ckpt"
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    first = next(iter(state))
    content["state_dict"] = {
        "fewer": {name: tensor for name, tensor in state.items() if name != first},
        "none": {},
        "of another shape": state | {first: torch.ones(3)},
    }[change]
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"checkpoint\.ckpt does not fit the model, and is set aside: repeat the command"
    ):
        run.pipeline().run()
    assert os.path.lexists(run.stage() / "damaged-checkpoint.ckpt") and not os.path.lexists(path)
    assert again(run) == []


def test_a_checkpoint_that_is_whole_is(stopped: Run, copy: Make, again: Make, capsys: Any) -> None:
    run = copy(stopped)
    position = checkpoint.check(run.stage() / "checkpoint.ckpt", run.pipeline().stages[-1].key)
    assert position.step == 3 and 0 < position.curves_bytes < (run.stage() / "curves.jsonl").stat().st_size
    assert again(run) == []


@pytest.mark.parametrize("damage", [empty, flip, missing, *OF_KIND], ids=named)
def test_curves_that_are_damaged_do_not_cost_the_training(
    stopped: Run, finished: Any, copy: Make, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    run = copy(stopped)
    curves = run.stage() / "curves.jsonl"
    curves.write_text(curves.read_text().replace('"step"', '"stfp"', 1) if damage is flip else curves.read_text())
    if damage is not flip:
        damage(curves)
    run.pipeline().run()
    said = capsys.readouterr().out
    assert "its curves.jsonl is damaged (" in said and f"{LAST}: resuming from" in said
    rows = curves.read_text().splitlines()
    straight = (finished[0].stage() / "curves.jsonl").read_text().splitlines()
    assert rows and set(rows) < set(straight)
    files = finished[0].files()
    assert {name: content for name, content in run.files().items() if "artifact" in name}.items() <= files.items()


# --- measures and curves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["measures.json", "curves.jsonl"])
@pytest.mark.parametrize("damage", [*OF_CONTENT, huge, *OF_KIND], ids=named)
def test_figures_that_are_damaged_are_written_again(
    finished: Any, copy: Make, again: Make, fits: list[str], name: str, damage: Damage
) -> None:
    run = copy(finished[0])
    damage(run.stage() / name)
    (line,) = again(run)
    assert line.startswith(f"{LAST}: its {name} is damaged (") and line.endswith("again") and fits == []


def test_figures_that_are_others_are_taken_again(finished: Any, copy: Make, again: Make, fits: list[str]) -> None:
    run = copy(finished[0])
    file = run.stage("dense") / "measures.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": {"disk_mb": 1.0}}))
    assert len(again(run)) == 1 and fits == []


def test_curves_that_were_deleted_are_written_again(finished: Any, copy: Make, again: Make) -> None:
    run = copy(finished[0])
    (run.stage() / "curves.jsonl").unlink()
    assert again(run) == []


@pytest.mark.parametrize("damage", [folder, pipe, link_to_nothing], ids=named)
def test_a_lock_that_is_no_file_is_put_right(finished: Any, copy: Make, again: Make, damage: Damage) -> None:
    run = copy(finished[0])
    damage(run.stage() / "lock")
    (line,) = again(run)
    assert line.startswith(f"{LAST}: its lock is damaged (it is no file)") and (run.stage() / "lock").is_file()


# --- records --------------------------------------------------------------------------------------------------------


def junk(path: Path) -> None:
    path.write_bytes(b"\x00\xff\n[]\n{}\n" + path.read_bytes()[:-200])


@pytest.mark.parametrize("damage", [missing, cut_at_the_end, junk], ids=named)
def test_records_that_were_lost_are_appended_again(
    finished: Any, copy: Make, fits: list[str], damage: Damage, recwarn: pytest.WarningsRecorder
) -> None:
    run = copy(finished[0])
    damage(run.runs / record.FILE)
    assert run.pipeline().run() == finished[1] and fits == []
    assert record.read(run.runs) == record.read(finished[0].runs)
    before = (run.runs / record.FILE).read_bytes()
    run.pipeline().run()
    assert (run.runs / record.FILE).read_bytes() == before


@pytest.mark.parametrize("damage", OF_KIND, ids=named)
def test_a_place_where_no_record_goes_is_said_first(finished: Any, copy: Make, damage: Damage) -> None:
    run = copy(finished[0])
    damage(run.runs / record.FILE)
    with pytest.raises(ValueError, match=r"records\.jsonl must be a file, .* move what is there, or set runs=FOLDER"):
        run.pipeline()


# --- models of the user ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "damage"),
    [(artifact.MANIFEST, empty), (artifact.MANIFEST, pipe), ("tokenizer.json", flip), ("model.safetensors", missing)]
    + [("model.safetensors", damage) for damage in (*OF_CONTENT, *OF_KIND)],
    ids=named,
)
def test_a_damaged_model_of_the_user_is_one_error_and_stays_as_it_is(
    finished: Any, arguments: list[str], tmp_path: Path, file: str, damage: Damage
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(finished[0].stage("dense") / "artifact", mine)
    damage(mine / file)
    before = sorted((path.name, path.lstat().st_mtime_ns) for path in mine.iterdir())
    baseline = ["model@baseline=pretrained", f"baseline.path={mine}", "baseline.max_length=16"]
    for role in ([f"model.path={mine}"], *([baseline] if damage is flip else [])):
        run = Run([*arguments, *role], tmp_path / "runs")
        with pytest.raises(
            ValueError, match=rf"model '{mine}' is damaged \(.*\): copy or train the model anew"
        ) as error:
            run.pipeline()
        assert "\n" not in str(error.value)
    assert sorted((path.name, path.lstat().st_mtime_ns) for path in mine.iterdir()) == before


# --- kills ----------------------------------------------------------------------------------------------------------

KILLED = 137


def killed_at(run: Run, moment: int) -> bool:
    """End a process of the run, as by SIGKILL, before its n-th rename or row of its curves; whether it came so far."""
    if (child := os.fork()) == 0:
        count = iter(range(moment))
        try:
            with pytest.MonkeyPatch.context() as patch:
                for place, name in ((os, "replace"), (Curves, "log_metrics")):
                    patch.setattr(place, name, _counting(getattr(place, name), count))
                run.pipeline().run()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


def _counting(call: Make, count: Iterator[int]) -> Make:
    def counted(*arguments: Any, **options: Any) -> Any:
        if next(count, None) is None:
            os._exit(KILLED)
        return call(*arguments, **options)

    return counted


def test_a_kill_at_any_moment_costs_nothing(arguments: list[str], finished: Any, again: Make, tmp_path: Path) -> None:
    """Between any two renames and rows: the same weights, curves and figures, and not a word of damage."""
    moment = 0
    while killed_at(run := Run(arguments, tmp_path / str(moment)), moment):
        assert again(run) == []
        moment += 1
    assert moment > 10
    assert run.files() == finished[0].files()
