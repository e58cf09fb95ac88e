"""Whatever became of a journal, the same command goes on: whole trials count, the others are done again, once."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from slimexp.sweeper import operation
from slimexp.sweeper.journal import FILE
from slimexp.sweeper.repair import DAMAGED
from slimexp.sweeper.sweep import Sweep
from slimexp.sweeper.trial_result import OUTCOME

Make = Callable[..., Sweep]
Lines = list[bytes]

COMMAND = ("x=1,2,3,4", "y=choice(1)")
STUDY, SWEEP = 0, 1
CREATE, X, Y, ENDED, STATE = range(5)  # lines of a trial


def at(trial: int, part: int) -> int:
    """Place of a trial's line."""
    return 2 + 5 * trial + part


_WHOLE: Lines = []  # of one sweep; in another folder it goes on as a moved one


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut is waited for."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def whole(make: Make, here: Any, tmp_path: Path) -> Lines:
    """Lines of the journal of the finished sweep."""
    if not _WHOLE:
        ran: list[str] = []
        make(*COMMAND, pool=partial(here, ran), workers=1, folder=tmp_path / "whole").run()
        _WHOLE.extend((tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True))
    assert len(_WHOLE) == 22
    return _WHOLE


@pytest.fixture
def go_on(make: Make, here: Any) -> Callable[[], tuple[Sweep, list[str]]]:
    """Gives the command, once more; the sweep, and what was done for it."""

    def call(**settings: Any) -> tuple[Sweep, list[str]]:
        ran: list[str] = []
        sweep = make(*COMMAND, pool=partial(here, ran), workers=1, **settings)
        front = [trial.params["x"] for trial in sweep.run()]
        assert front == ["4", "3", "2"] and sweep.done == sweep.total == 4 and sweep.failures == 0
        return sweep, ran

    return call


def edited(line: bytes, **changes: Any) -> bytes:
    """An operation with other values; ``None`` takes one out."""
    op = {**json.loads(line), **changes}
    return json.dumps({name: value for name, value in op.items() if value is not None}).encode() + b"\n"


def put(place: int, junk: bytes) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:place], junk, *lines[place:]]


def swap(place: int, junk: bytes) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:place], junk, *lines[place + 1 :]]


def edit(place: int, **changes: Any) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:place], edited(lines[place], **changes), *lines[place + 1 :]]


def moved(place: int, to: int) -> Callable[[Lines], Lines]:
    def damage(lines: Lines) -> Lines:
        line = lines.pop(place)
        return [*lines[:to], line, *lines[to:]]

    return damage


def cut_out(place: int) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:place], *lines[place + 1 :]]


def glued(place: int, cut: int | None) -> Callable[[Lines], Lines]:
    """A line, or its first bytes, and the next without a break."""
    return lambda lines: [*lines[:place], lines[place].rstrip()[:cut] + lines[place + 1], *lines[place + 2 :]]


JUNK = {
    "blank": b"\n",
    "spaces": b"   \t \n",
    "NUL": b"\0" * 4096 + b"\n",
    "binary": bytes(range(256)).replace(b"\n", b"") + b"\n",
    "not UTF-8": b'{"op_code": 8, "worker_id": "\xff\xfe"}\n',
    "words": b"No space left on device\n",
    "a list": b"[1, 2]\n",
    "a number": b"17\n",
    "a word of JSON": b"null\n",
    "text": b'"op_code"\n',
    "no operation": b'{"trial_id": 1}\n',
    "no worker": b'{"op_code": 4, "study_id": 0}\n',
    "an operation that is none": b'{"op_code": 99, "worker_id": "w"}\n',
    "a negative operation": b'{"op_code": -1, "worker_id": "w"}\n',
    "an operation in words": b'{"op_code": "5", "worker_id": "w", "trial_id": 0}\n',
    "an operation that is true": b'{"op_code": true, "worker_id": "w", "study_id": 0}\n',
    "a trial that is not there": b'{"op_code": 6, "worker_id": "w", "trial_id": 9, "state": 1, "values": [1, 1]}\n',
    "a trial far beyond": b'{"op_code": 6, "worker_id": "w", "trial_id": 999999999, "state": 1, "values": [1, 1]}\n',
    "a negative trial": b'{"op_code": 6, "worker_id": "w", "trial_id": -1, "state": 1, "values": [1, 1]}\n',
    "a trial in words": b'{"op_code": 6, "worker_id": "w", "trial_id": "0", "state": 1, "values": [1, 1]}\n',
    "a study that is not there": b'{"op_code": 4, "worker_id": "w", "study_id": 7, "datetime_start": null}\n',
    "a study without a name": b'{"op_code": 0, "worker_id": "w", "directions": [1]}\n',
    "an end without a state": b'{"op_code": 6, "worker_id": "w", "trial_id": 3}\n',
    "nested without end": b"[" * 100_000 + b"\n",
    "an end of a list": b'{"op_code": 6, "worker_id": "w", "trial_id": 3, "state": [1]}\n',
    "an end in words": b'{"op_code": 6, "worker_id": "w", "trial_id": 3, "state": "1"}\n',
    "a number without end": b"1" * 10_000 + b"\n",
    "a long line": b"x" * 5_000_000 + b"\n",
}
REST = {  # what is damaged -> how, and the trials done again for it
    "tail torn in the last line": (lambda lines: [*lines[:-1], lines[-1][:-9]], []),
    "tail torn at its break": (lambda lines: [*lines[:-1], lines[-1].rstrip()], []),
    "tail torn after a bracket": (lambda lines: [*lines, b"{"], []),
    "tail of NULs": (lambda lines: [*lines, b"\0" * 512], []),
    "tail without the last trial": (lambda lines: [*lines[:17], lines[17][:30]], ["4"]),
    "two whole lines glued": (glued(at(1, ENDED), None), []),
    "a lost end and the next beginning": (glued(at(1, STATE), 30), []),
    "a lost outcome and its end": (glued(at(1, ENDED), 60), ["2"]),
    "a lost beginning": (glued(at(2, CREATE), 20), []),
    "a lost parameter": (glued(at(2, X), 50), ["3"]),
    "the study twice": (lambda lines: [lines[0], *lines], []),
    "a beginning twice": (lambda lines: [*lines[:3], lines[2], *lines[3:]], []),
    "an end twice": (lambda lines: [*lines[:7], lines[6], *lines[7:]], []),
    "the file twice": (lambda lines: [*lines, *lines], []),
    "an end before what it ends": (moved(at(0, STATE), at(0, CREATE)), []),
    "a beginning after its trial": (moved(at(1, CREATE), at(1, STATE)), []),
    "the study last": (moved(STUDY, 21), []),
    "backwards": (lambda lines: lines[::-1], []),
    "an outcome after the end": (moved(at(2, ENDED), at(3, STATE)), []),
    "no time": (edit(at(1, CREATE), datetime_start="yesterday"), []),
    "no distribution": (edit(at(1, X), distribution="{}"), ["2"]),
    "a choice that is not there": (edit(at(1, X), param_value_internal=44), ["2"]),
    "an outcome of another kind": (edit(at(1, ENDED), user_attr={OUTCOME: [1]}), ["2"]),
    "an outcome of nothing": (edit(at(1, ENDED), user_attr={OUTCOME: {}}), ["2"]),
    "two attributes": (edit(at(1, ENDED), user_attr={"a": 1, "b": 2}), ["2"]),
    "attributes of a number": (edit(at(1, ENDED), user_attr=4), ["2"]),
    "an end of no state": (edit(at(1, STATE), state=77), []),
    "an end of another state": (edit(at(1, STATE), state=3), ["2"]),
    "values that are none": (edit(at(1, STATE), values=[float("nan"), 1]), []),
    "too few values": (edit(at(1, STATE), values=[1]), []),
    "values in words": (edit(at(1, STATE), values="12"), []),
    "another trial's end": (edit(at(1, STATE), trial_id=2), []),
    "Windows' line breaks": (lambda lines: [line.replace(b"\n", b"\r\n") for line in lines], []),
    "nothing whole": (lambda lines: [line[3:] for line in lines], ["1", "2", "3", "4"]),
    "nothing": (lambda lines: [], ["1", "2", "3", "4"]),
}
DAMAGES: dict[str, tuple[Callable[[Lines], Lines], list[str]]] = {
    **{f"{what} between": (put(at(2, X), junk), []) for what, junk in JUNK.items()},
    **{f"{what} at the end": (put(22, junk), []) for what, junk in JUNK.items()},
    **{
        f"{what} for a beginning": (swap(at(1, CREATE), JUNK[what]), []) for what in ("NUL", "blank", "a list", "words")
    },
    **{
        f"line {place} {how}": (lambda lines, place=place, text=text: [*lines[:place], *text, *lines[place + 1 :]], [])
        for how, text in {"missing": [], "cut": [b'{"op_code":\n']}.items()
        for place in (STUDY, SWEEP, *(at(trial, part) for trial in (0, 2, 3) for part in (CREATE, STATE)))
    },
    **{
        f"line {at(trial, part)} missing": (cut_out(at(trial, part)), [f"{trial + 1}"])
        for trial in range(4)
        for part in (X, Y, ENDED)
    },
    **REST,
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_journal_goes_on(
    go_on: Callable[[], tuple[Sweep, list[str]]],
    whole: Lines,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    path = tmp_path / "sweep" / FILE
    path.parent.mkdir()
    damage, redone = DAMAGES[what]
    path.write_bytes(b"".join(damage(list(whole))))
    damaged = path.read_bytes()
    _, ran = go_on()
    assert ran == redone
    copy = path.with_name(FILE + DAMAGED)
    if copy.exists():
        assert copy.read_bytes() == damaged
        assert capsys.readouterr().err.startswith(f"warning: {path}: ")
    else:
        assert path.read_bytes().startswith(damaged)  # nothing but what Optuna itself puts up with
    capsys.readouterr()
    sweep, ran = go_on()
    assert ran == [] and capsys.readouterr().err == ""
    assert not list((tmp_path / "sweep").glob("*.damaged-2"))
    states = [trial.state.name for trial in sweep.study.trials if trial.params and OUTCOME in trial.user_attrs]
    assert states.count("COMPLETE") == 4


OTHERS = {
    "another metric": {"cer": "min", "latency_ratio": "min"},
    "another order": {"disk_mb": "min", "cer": "min"},
    "another direction": {"cer": "max", "disk_mb": "min"},
    "one less": {"cer": "min"},
    "one more": {"cer": "min", "disk_mb": "min", "latency_ratio": "min"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_sweep_of_other_objectives_is_refused_and_its_journal_stays(
    make: Make, go_on: Any, whole: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = tmp_path / "sweep" / FILE
    path.parent.mkdir()
    path.write_bytes(b"".join(whole))
    with pytest.raises(ValueError, match=r"holds another sweep \(objectives was .* and is .*: repeat its command"):
        make(*COMMAND, objectives=OTHERS[what])
    assert path.read_bytes() == b"".join(whole) and capsys.readouterr().err == ""
    assert sorted(path.name for path in path.parent.iterdir()) == [FILE, "lock", "study"]
    _, ran = go_on()
    assert ran == []


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("lost", [STUDY, at(2, X)])
def test_a_damaged_journal_is_mended_by_its_own_objectives(
    make: Make, go_on: Any, whole: Lines, tmp_path: Path, what: str, lost: int
) -> None:
    path = tmp_path / "sweep" / FILE
    path.parent.mkdir()
    path.write_bytes(b"".join(cut_out(lost)(list(whole))))
    with pytest.raises(ValueError, match="holds another sweep"):
        make(*COMMAND, objectives=OTHERS[what])
    _, ran = go_on()
    assert ran == ([] if lost == STUDY else ["3"])


def test_the_warning_names_the_lines(go_on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on()
    path = tmp_path / "sweep" / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4], lines[9] = b"\n", b"[1]\n"
    path.write_bytes(b"".join([*lines, b'{"op_']))
    go_on()
    assert capsys.readouterr().err == (
        f"warning: {path}: line 5 is blank, line 10 is no operation, line 23 is cut off: what is whole in it "
        f"counts, and trials of which a line is lost are done again; the file as it was is {FILE}.damaged\n"
    )


DIFFER = "did not end as the other lines say, or one of these is missing"


@pytest.mark.parametrize(
    ("damage", "summary"),
    [
        ([edit(at(1, STATE), values=[7, 7])], f"trial 1 {DIFFER}"),
        ([edit(at(1, STATE), values=[7, 7]), edit(at(3, STATE), values=[7, 7])], f"trials 1, 3 {DIFFER}"),
        ([edit(at(1, ENDED), user_attr={OUTCOME: {}})], f"trial 1 {DIFFER}"),
        ([cut_out(at(2, X))], f"trial 2 {DIFFER}"),
        ([edit(at(0, STATE), state=77)], "line 7 is no operation of Optuna's"),
        ([moved(at(1, CREATE), at(1, STATE))], "lines are missing or out of order"),
        ([cut_out(STUDY)], "lines are missing or out of order"),
    ],
)
def test_where_every_line_is_whole_the_trials_are_named(
    go_on: Any,
    whole: Lines,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: list[Callable[[Lines], Lines]],
    summary: str,
) -> None:
    lines = list(whole)
    for one in damage:
        lines = one(lines)
    path = tmp_path / "sweep" / FILE
    path.parent.mkdir()
    path.write_bytes(b"".join(lines))
    go_on()
    assert capsys.readouterr().err.startswith(f"warning: {path}: {summary}: what is whole in it counts")


def test_a_line_without_end_is_not_held(
    go_on: Any, whole: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operation, "LONGEST", 10_000)
    path = tmp_path / "sweep" / FILE
    path.parent.mkdir()
    path.write_bytes(b"".join(put(at(2, X), edited(whole[at(1, X)], param_name="x" * 20_000))(whole)))
    _, ran = go_on()
    assert ran == [] and f"warning: {path}: line 14 has more than 10000 bytes: what" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler", "RandomSampler"])
def test_a_sampler_goes_on_from_a_damaged_journal(make: Make, here: Any, tmp_path: Path, sampler: str) -> None:
    made = getattr(optuna.samplers, sampler)

    def command(trials: int) -> Sweep:
        ran: list[str] = []
        return make(
            "x=interval(0.0,9.0)", "y=1", sampler=lambda **more: made(seed=0, **more), trials=trials, workers=1,
            pool=partial(here, ran),
        )  # fmt: skip

    command(12).run()
    path = tmp_path / "sweep" / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if b'"op_code":5' in line or b'"op_code":4' in line]
    for place in places[::3]:
        lines[place] = b"\0\n"
    path.write_bytes(b"".join(lines))
    sweep = command(16)
    lost = 12 - sweep.done
    assert 0 < lost <= len(places[::3])
    assert sweep.run() and sweep.done == 16


def test_what_is_no_journal_is_one_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "sweep" / FILE).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"journal\.jsonl is no file, and a sweep's journal must be one"):
        make(*COMMAND)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_journal_is_one_error(make: Make, tmp_path: Path) -> None:
    make(*COMMAND)._lock.close()
    (tmp_path / "sweep" / FILE).chmod(0)
    with pytest.raises(ValueError, match=r"journal\.jsonl cannot be read \(Permission denied\)"):
        make(*COMMAND)
