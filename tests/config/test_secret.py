"""What is written of a config holds no value of the environment and no secret."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from slimexp.config import secret
from slimexp.config.build import ConfigError
from slimexp.config.check import check
from slimexp.config.command_line import main
from slimexp.config.composition import compose
from slimexp.config.explanation import explain

VALUE = "9f2c-not-for-others"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", VALUE)
    monkeypatch.setenv("NUMBER", "731905")


@pytest.mark.fast
@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:TOKEN}",
        "${oc.env:TOKEN,none}",
        "${oc.env:NOT_SET,none}",
        "${oc.decode:${oc.env:NUMBER}}",
        "Bearer ${oc.env:TOKEN}!",
        "${plain.through}",
        "${plain.inside}",
        "${oc.select:plain.through,3}",
        "${oc.env:${plain.name}}",
    ],
)
def test_the_text_is_written_and_the_value_used(text: str) -> None:
    plain = {"through": "${oc.env:TOKEN}", "inside": "a ${.through} b", "name": "TOKEN"}
    cfg = OmegaConf.create({"plain": plain, "key": text, "items": [text, 1], "whole": "${plain}"})
    used, shown = OmegaConf.to_container(cfg, resolve=True), secret.written(cfg)
    assert shown["key"] == shown["items"][0] == text and shown["items"][1] == 1
    assert shown["whole"] == {**plain, "name": "TOKEN"}
    assert VALUE not in json.dumps(shown) and "731905" not in json.dumps(shown)
    assert used["key"] != text and secret.hides(cfg)  # type: ignore[index, call-overload]
    assert OmegaConf.to_container(cfg, resolve=True) == used  # and it is read again as before


@pytest.mark.fast
def test_whatever_reads_no_environment_is_written_resolved() -> None:
    cfg = OmegaConf.create({"a": 1, "b": "${a}", "c": ["${a}", None], "d": "???", "e": "x${a}", "f": {"g": "${..a}"}})
    assert secret.written(cfg) == {"a": 1, "b": 1, "c": [1, None], "d": "???", "e": "x1", "f": {"g": 1}}
    del cfg["d"]
    assert not secret.hides(cfg)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("key", "value", "hidden"),
    [
        ("token", "abc", True), ("hub_token", "abc", True), ("API_KEY", "abc", True), ("db_password", "abc", True),
        ("client_secret", "abc", True), ("credentials", "abc", True), ("passwd", "abc", True),
        ("pwd", "abc", True), ("db_pwd", "abc", True), ("pwds", "abc", False),
        ("tokens", "abc", False), ("pad_token", "<pad>", False), ("tokenizer", "abc", False), ("key", "abc", False),
        ("token", 3, True), ("token", None, False), ("token", True, False), ("passport", "abc", False),
    ],
)  # fmt: skip
def test_what_was_typed_at_a_secret_key_is_hidden(key: str, value: Any, hidden: bool) -> None:
    assert (secret.written(OmegaConf.create({"a": {key: value}}))["a"][key] == "***") is hidden
    override = f"+a.{key}={'null' if value is None else str(value).lower() if value is True else value}"
    assert (secret.masked([override]) == [f"+a.{key}=***"]) is hidden


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a.url=https://me:pw@host/x", "a.url=https://***@host/x"),
        ("a={user: me, token: x, n: 2}", "a={user: me, token: ***, n: 2}"),
        ("a.url=http://localhost:8080/path@v1", "a.url=http://localhost:8080/path@v1"),
        ("a.url=http://[::1]:80/path@v1", "a.url=http://[::1]:80/path@v1"),
        ("a.url=https://me:pa/ss@host/x", "a.url=https://***@host/x"),
        ("a.url=https://me:80@host/x", "a.url=https://***@host/x"),
        ("a={user: me, token: 'ab,cdefghij'}", "a={user: me, token: ***}"),
        ("a={user: me, 'token': \"ab}c\", n: 2}", "a=***"),
        ("a={token: ab\\,cdefghij, n: 2}", "a={token: ***, n: 2}"),
        ("a={token: [b, 'c,d'], n: 2}", "a={token: ***, n: 2}"),
        ("a=[{token: b}, {n: {pwd: 'c:d'}}, 3]", "a=[{token: ***}, {n: {pwd: ***}}, 3]"),
        ("a={credentials: {user: me, key: x}}", "a={credentials: ***}"),
        ("a={token: b", "a=***"),
        ("a={token: b},{token: c}", "a=***"),
        ('a=\'{"token": "ab,cd"}\'', "a=***"),
        ("a={token: ${oc.env:TOKEN}}", "a={token: ${oc.env:TOKEN}}"),
        ("a='the token: it is'", "a='the token: it is'"),
        ("a={pad_token: x,n:2}", "a={pad_token: x,n:2}"),
        ("a.token=[b,c]", "a.token=***"),
        ("a.token=${oc.env:TOKEN}", "a.token=${oc.env:TOKEN}"),
        ("seed=1", "seed=1"),
        ("~callback.x", "~callback.x"),
    ],
)
def test_overrides(given: str, shown: str) -> None:
    assert secret.masked([given]) == [shown]
    assert secret.masked(OmegaConf.create([given])) == [shown]  # as Hydra holds them


@pytest.mark.fast
def test_all_that_stands_below_a_secret_key_is_hidden() -> None:
    cfg = OmegaConf.create(
        {"tokens": ["a"], "token": ["a", {"b": "c"}, "${oc.env:TOKEN}", None], "credentials": {"d": 1}}
    )
    assert secret.written(cfg) == {
        "tokens": ["a"], "token": ["***", {"b": "***"}, "${oc.env:TOKEN}", None], "credentials": {"d": "***"}
    }  # fmt: skip


@pytest.mark.fast
def test_a_default_is_an_open_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    assert OmegaConf.create({"a": "${oc.env:NOT_SET,python}"}).a == "python"
    assert secret.redacted("python -m slimexp.train") == "python -m slimexp.train"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("+logger.hub_token=SECRETX,b", "'+logger.hub_token=***' has several values"),
        ("+logger.hub_token=SECRETX:[x", "cannot read '+logger.hub_token=***'"),
        ("+logger.x={token: SECRETX", "cannot read '+logger.x=***'"),
        ("+logger.x={token: SECRETX},b", "'+logger.x=***' has several values"),
        ("checkpoint.api_key=SECRETX", "unknown key 'checkpoint.api_key'"),
        ("+seed.token=SECRETX", "seed must be a whole number, got {}"),
        ("+logger.token=SECRETX,b", "quotes"),
    ],
)
def test_messages_do_not_repeat_a_typed_secret(
    word: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "+experiment=prune_t5", f"runs={tmp_path}", word])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit, match="2"):
        main(check)
    (line,) = capsys.readouterr().err.splitlines()
    assert shown in line and "SECRETX" not in line


@pytest.mark.fast
@pytest.mark.parametrize(
    "error", [ConfigError(f"model: no {VALUE} here"), ConfigError(f"cannot reach postgres://me:{VALUE}@host")]
)
def test_messages_name_the_variable_and_not_its_value(error: Exception) -> None:
    assert OmegaConf.create({"a": "${oc.env:TOKEN}"}).a == VALUE  # a config reads it
    output = explain(error)
    assert output is not None and VALUE not in output


def test_a_value_of_the_wrong_type_is_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"got '\$\{oc\.env:TOKEN\}'"):
        check(compose(["+experiment=prune_t5", "pipeline.prune.steps=${oc.env:TOKEN}"]))


def test_nothing_that_a_run_leaves_holds_it(overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    """Neither the record nor W&B's files, which would keep the command line and where the repository comes from."""
    repository = tmp_path / "repository"
    repository.mkdir()
    remote = ["remote", "add", "origin", f"https://me:{VALUE}@host.invalid/x.git"]
    for command in (["init", "-q"], remote, ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=repository, check=True)
    stage = "pipeline.finetune"
    given = overrides(
        "finetune", "measure=[size]", "name=${oc.env:RUN_NAME}", f"{stage}.steps=1", f"{stage}.batch_size=2",
        f'{stage}.losses.ce.weight="${{oc.decode:${{oc.env:NUMBER}}}}"', f"hydra.job.name='https://me:{VALUE}@host'",
    )  # fmt: skip
    given = [line for line in given if line != "logger=none"] + ["data.columns.label=${oc.env:TOKEN}"]
    done = subprocess.run(
        [sys.executable, "-m", "slimexp.train", *given], cwd=repository, capture_output=True, text=True,
        env={**os.environ, "WANDB_MODE": "offline", "RUN_NAME": "named", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert VALUE not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    row = json.loads((tmp_path / "runs" / "records.jsonl").read_text().splitlines()[-1])
    assert (row["name"], row["config"]["name"]) == ("named", "${oc.env:RUN_NAME}")
    assert row["config"]["pipeline"]["finetune"]["losses"]["ce"]["weight"] == "${oc.decode:${oc.env:NUMBER}}"
    holding = [path for path in files if VALUE.encode() in path.read_bytes()]
    assert holding == []


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1,2", f"+data={{token: {VALUE}}}"],
        [f"+data.token={VALUE}-1,'{VALUE} 2'"],
        [f"+data.x={{pwd: '{VALUE} 1'}}"],
    ],
)
def test_nothing_that_hydra_tells_of_a_multirun_holds_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not for a moment: a job could be killed."""
    runs = tmp_path / "runs"
    monkeypatch.setattr("sys.argv", ["train", "-m", f"runs={runs}", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    seen = []
    main(lambda cfg: seen.append(((runs / "multirun.yaml").read_text(), VALUE in str(cfg))))
    assert seen and all(VALUE not in dumped and "***" in dumped and used for dumped, used in seen)
    output = "".join(capsys.readouterr())
    assert "#0 : " in output and "***" in output and VALUE not in output


def test_a_multirun_without_secrets_is_dumped_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train", "-m", f"runs={tmp_path}", "seed=1,2"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    main(lambda cfg: None)
    dumped = OmegaConf.load(tmp_path / "multirun.yaml")
    assert dumped.hydra.overrides.task == [f"runs={tmp_path}", "seed=1,2"]
    assert OmegaConf.to_container(dumped.hydra.sweep)["dir"] == "${home:${runs}}"  # type: ignore[index, call-overload]
