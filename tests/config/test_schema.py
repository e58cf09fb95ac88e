"""Root keys: what they must be, said by ``check`` before anything is loaded or written."""

from copy import deepcopy
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from slimexp.config.build import ConfigError
from slimexp.config.check import check
from slimexp.config.command_line import main
from slimexp.config.composition import compose
from slimexp.config.schema import Run, unfit_name

WRONG = [
    *(("name", name) for name in ("", " ", ".", "..", "../../up", "/tmp/x", "a/b", "a\\b", "a\0b", "a\nb", "a\tb",
                                  "a ", " a", "x" * 300, "é" * 65, "records.jsonl", "sweep", "wandb", "report.csv")),
    *(("runs", runs) for runs in ("", " ", "a\0b", "a\nb", "FILE", "FILE/below")),
    *(("seed", seed) for seed in (-1, 2**32, 2**70)),
    *(("save_dtype", name) for name in ("int8", "complex64", "bogus", "nn", "", "float8_e4m3fn", "bool")),
    *(("checkpoint.every_steps", number) for number in (0, -1)),
    *(("checkpoint.every_seconds", number) for number in (-1, float("nan"), float("inf"))),
    *(("checkpoint.share", number) for number in (-0.1, 0, 1.1, float("nan"), float("inf"))),
    *((f"trainer.{key}", value) for key, value in {
        "accumulate_grad_batches": 2, "callbacks": [], "default_root_dir": "x", "fast_dev_run": True, "max_steps": 3,
        "gradient_clip_val": 1.0, "limit_train_batches": 2, "logger": True, "max_epochs": 1, "min_epochs": 1,
        "min_steps": 1, "overfit_batches": 1, "barebones": True, "gradient_clip_algorithm": "norm"}.items()),
    *((f"pipeline.prune.{key}", value) for key, values in {
        "optimizer": [None], "lr_scheduler": [None], "losses": [None], "losses.ce": [None], "importance": [None],
        "pattern": [None], "schedule": [None], "include": [None, "a"], "steps": [None, "abc", True, 1e30], "seed": [-1],
        "optimizer.lr": ["abc", True, float("nan")], "optimizer.betas": [[0.9], 3], "every": [2**63],
        "losses.ce.weight": [float("inf")]}.items() for value in values),  # type: ignore[attr-defined]
    ("measure.size", None), ("measure.size", "abc"), ("measure.size", 3), ("callback.progress", None),
    ("callback.progress", "abc"), ("model.path", None), ("model.max_length", 1.5), ("logger.tags", "a"),
    ("model.path", ""), ("logger.folder", " "), ("data.seed", -1), ("data.split_seed", 2**32),
]  # fmt: skip


@cache
def composed() -> DictConfig:
    cfg = compose(["+experiment=prune_t5"])
    OmegaConf.set_struct(cfg, False)
    return cfg


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_one_line_says_key_and_value(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    if isinstance(value, str):
        value = value.replace("FILE", str(tmp_path / "file"))
    cfg = deepcopy(composed())
    cfg.runs = str(tmp_path / "runs")
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(ConfigError) as caught:
        check(cfg)
    (message,) = str(caught.value).splitlines()
    assert message.startswith(key) or message.startswith(key.rpartition(".")[0])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "x" * 128), ("name", "my run (1)"), ("name", "été"), ("name", "a.b-c_d=1,2"), ("seed", 2**32 - 1),
        ("seed", 0), ("save_dtype", "float16"), ("save_dtype", "float64"), ("checkpoint.every_seconds", 0),
        ("checkpoint.every_steps", 1), ("checkpoint.share", None), ("checkpoint.share", 1), ("trainer.logger", False),
        ("trainer.profiler", "simple"), ("runs", "new/folder"),
        ("pipeline.prune.optimizer.lr", 0), ("pipeline.prune.allocation", None), ("logger.entity", None),
    ],
)  # fmt: skip
def test_right_values_pass(key: str, value: object) -> None:
    cfg = deepcopy(composed())
    OmegaConf.update(cfg, key, value, merge=False)
    check(cfg)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("seed=-1", "seed must be in 0..2^32-1, got -1"),
        ("seed=1.5", "seed must be a whole number, got 1.5"),
        ("seed=true", "seed must be a whole number, got True"),
        ("checkpoint.every_seconds=abc", "checkpoint.every_seconds must be a number, got 'abc'"),
        ("save_dtype=int8", "save_dtype must be a torch floating-point type (float16, bfloat16, "),
        ("name=../up", "name must be one folder's name, without slashes, control characters and blanks at its ends"),
        ("+trainer.max_steps=3", "trainer.max_steps is not for the trainer to say: set pipeline.<stage>.steps"),
        ("pipeline.prune.optimizer.lr=nan", "pipeline.prune.optimizer.lr must be a finite number, got nan"),
        ("pipeline.prune.losses.ce=null", "pipeline.prune.losses must be Mapping"),
        ("model.path=~/my model (1)", "quote it: 'model.path=\"~/my model (1)\"'"),
        ("model.path=a,b", "add --multirun to run each, or, where the comma is part of one, quote it: "),
    ],
)  # fmt: skip
def test_a_program_ends_with_one_line(
    wrong: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "+experiment=prune_t5", f"runs={tmp_path / 'runs'}", wrong])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as stop:
        main(check)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert [path for path in (tmp_path / "runs").rglob("*")] == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("search.heads=0.5", "search.heads must be a list, got 0.5: write 'search.heads=[0.5]'"),
        ("search.ffn=null", "search.ffn must not be null"),
    ],
)
def test_a_list_is_asked_for_in_words(
    wrong: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["search", "+experiment=search_llama", wrong])
    with pytest.raises(SystemExit):
        main(check, "search")
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(("name", "fits"), [("ä" * 64, True), ("ä" * 65, False), ("a" * 128, True), ("a" * 129, False)])
def test_a_name_is_measured_in_bytes(name: str, fits: bool) -> None:
    assert unfit_name(name) == ("" if fits else "must have at most 128 bytes (in UTF-8, where ä takes 2)")


def test_the_home_folder_is_meant_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    seen = []
    given = ["model=pretrained", 'model.path="~/model"', "data=files", 'data.path="~/a~b.csv"', "data.task=seq2seq"]
    monkeypatch.setattr("sys.argv", ["train", *given, "pipeline=prune", 'runs="~/runs"', 'name="a~b"'])
    main(lambda cfg: (check(cfg), seen.append(cfg)))
    (cfg,) = seen
    assert (cfg.model.path, cfg.data.path) == (f"{tmp_path}/model", f"{tmp_path}/a~b.csv")
    assert (cfg.runs, cfg.logger.folder, cfg.name) == (f"{tmp_path}/runs", f"{tmp_path}/runs", "a~b")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_root_keys_are_documented() -> None:
    assert all(f"{item.name}:" in str(Run.__doc__) for item in fields(Run))


@pytest.mark.parametrize("name", ["completions", "teacher_cache", "sweep"])
def test_a_run_is_not_called_as_what_the_runs_folder_has_of_its_own(name: str) -> None:
    assert name in unfit_name(name) and "of its own" in unfit_name(name)
    assert unfit_name(f"{name}_2") == ""
