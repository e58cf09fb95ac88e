"""Cases of what runs leave: stages, checkpoints, measures, curves, records, sweeps, caches; of what reports read."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import damage
from benchmarks.faults.case import Case
from benchmarks.faults.child import HOME
from benchmarks.faults.damage import CODE, ESCAPE, JSON, PLACES, SCRIPT
from benchmarks.faults.models import WEIGHTS, every, file_at, on, wrong_values
from benchmarks.faults.world import (
    CHAIN,
    CLEAN,
    DATA,
    HALF,
    PRUNED,
    PUBLISHED,
    REPORT,
    SELECT,
    SWEEP,
    Command,
    evaluate,
    train,
)

READERS = (REPORT, SELECT, CLEAN)
FIELDS: dict[str, tuple[Any, ...]] = {  # of a record -> values it may be given
    "time": (None, 5, "", "tomorrow", ESCAPE),
    "name": (None, "../../victim", ESCAPE, SCRIPT, r"$\frac{$", "", "x" * 100_000),
    "stage": (None, 5, "../victim", ESCAPE, r"$\frac{$", SCRIPT),
    "key": (None, 5, [], "", ESCAPE),
    "parent": (5, [], "nobody"),
    "technique": (None, 5, r"$\undefined$", SCRIPT),
    "seed": (None, "x", 1e308, [], 10**400),
    "overrides": (None, "x", [5], {}, [ESCAPE], [SCRIPT]),
    "config": (None, [], "x", {"pipeline": 5}, {"pipeline": {"prune": None}}, {"data": []}, {},
    {"pipeline": {"x": "$$$"}}),
    "git": ("x", []),
    "versions": (None, "x", [], {"torch": []}),
    "hardware": (None, "x", {}, {"gpu": 5}, {"cpu": ESCAPE}, {"gpu": [5]}),
    "kernel": (None, 5, ESCAPE, SCRIPT),
    "headline": (None, 5, "", "nothing", r"$\frac{$", SCRIPT),
    "direction": (None, "up", 5),
    "metrics": (None, [], "x", {"bits_per_byte": True}, {"disk_mb": 1e400}, {"disk_mb": -1}, {"disk_mb": 10**400}, {},
                {"disk_mb": 0, "bits_per_byte": 0}, {SCRIPT: 1.0, ESCAPE: 2.0}, {"bits_per_byte_stderr": -1}),
    "directions": (None, [], {"disk_mb": "up"}, "x"),
    "baseline": (None, [], "x", {"bits_per_byte": "x"}, {"disk_mb": 0}, {"disk_mb": float("nan")}),
    "baseline_key": (5, [], ""),
    "trivial": (None, "x", float("nan"), [], 10**400),
    "seconds": (None, [], {"train": "x"}, {"train": -1e308}),
    "reused": (None, "x", 5),
    "artifact": (None, 5, "../../victim", "../victim/artifact", "/", "..", ".", "", "mine/artifact", "/dev/zero", "\0"),
    "curves": (5, "/dev/zero", "../../victim/thesis.txt", "..", "\0", "mine/pipe"),
    "schema": (None, "x", 99, -1, [], True),
}  # fmt: skip


def _line(field: str, value: Any, *, every_line: bool = False) -> damage.Damage:
    """Another value in the last line of a records file, or in all."""

    def change(path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows if every_line else rows[-1:]:
            if value is ...:
                del row[field]
            else:
                row[field] = value
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return change


def _cycle(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, before in zip(rows, [rows[-1], *rows], strict=False):
        row["parent"] = before["key"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _own_parent(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"parent": row["key"]}) + "\n" for row in rows))


def _append(text: str) -> damage.Damage:
    return lambda path: path.write_text(path.read_text() + text)


LINES: dict[str, damage.Damage] = {
    "torn last line": lambda path: path.write_bytes(path.read_bytes()[:-400]),
    "ancestors in a circle": _cycle,
    "its own parent": _own_parent,
    "no JSON appended": _append("hello\n"),
    "a list appended": _append("[]\n"),
    "deep JSON appended": _append(damage.DEEP + "\n"),
    "deep objects appended": _append('{"a":' * 50_000 + "\n"),
    "control characters appended": _append(ESCAPE + "\n"),
    "NUL bytes appended": _append("\0" * 1000 + "\n"),
    "a huge number appended": _append("1" + "0" * 5000 + "\n"),
    "empty lines": _append("\n\n\n"),
    "a line without a break": _append('{"x": 1}'),
}


def records(world: Path) -> Iterator[Case]:
    file = "runs/records.jsonl"
    for command in READERS:
        name = command.module.rpartition(".")[2]
        for case in every(name, file, command, damage.BYTES, PLACES, JSON, LINES):
            yield Case("records", f"{name}: {case.name}", command, case.damage, case.name.endswith(("cut", "twice")))
        for field, values in FIELDS.items():
            for value in (..., *values):
                for all_lines in (False, True) if field in ("artifact", "config", "metrics") else (False,):
                    shown = "missing" if value is ... else repr(value)[:40]
                    change = _line(field, value, every_line=all_lines)
                    label = f"{name}: {field} {shown}{' in all' if all_lines else ''}"
                    yield Case("records", label, command, on(file, change), differs=value is not ...)
    for case in every("records", file, PRUNED, damage.BYTES, PLACES, LINES, differs=True):
        yield Case("records", f"train: {case.name}", PRUNED, case.damage, True)


def stages(world: Path) -> Iterator[Case]:
    """What a stage's folder holds."""
    text = (damage.BYTES, PLACES)
    masked = "chain/chain/prune-*/artifact/training.safetensors"
    yield from every("training", masked, CHAIN, *text, CODE, WEIGHTS)
    checkpoint = "half/p50/prune-*/checkpoint.ckpt"
    yield from every("checkpoint", checkpoint, HALF, *text, CODE)
    for name, source in {"model.safetensors": "model/model.safetensors", "a record": "runs/records.jsonl"}.items():
        yield Case("checkpoint", f"{name} in its place", HALF, _copied(source, checkpoint))
    for change in _torch_files():
        yield Case("checkpoint", change[0], HALF, on(checkpoint, change[1]))
    for command, folder in ((PRUNED, "runs/p50/prune-*"), (HALF, "half/p50/dense-*")):
        yield from every("measures", f"{folder}/measures.json", command, *text, JSON)
        file = f"{folder}/measures.json"
        yield from wrong_values("measures", world, file, command, each=1, most=16, differs=True)
    for command in (PRUNED, REPORT):
        yield from every("curves", "runs/p50/prune-*/curves.jsonl", command, *text, LINES_OF_CURVES, differs=True)
    yield from every("curves", "half/p50/prune-*/curves.jsonl", HALF, *text, LINES_OF_CURVES, differs=True)


LINES_OF_CURVES = {name: LINES[name] for name in LINES if "ancest" not in name and "parent" not in name} | {
    "text for numbers": _append(json.dumps({"step": "x", "loss": [], ESCAPE: 1}) + "\n"),
    "a step of 1e308": _append('{"step": 1e308, "loss": 1e308}\n{"step": -5, "loss": NaN}\n'),
}


def _copied(source: str, target: str) -> Callable[[Path], object]:
    return lambda home: shutil.copyfile(file_at(home, source), file_at(home, target))


def _torch_files() -> Iterator[tuple[str, damage.Damage]]:
    """Checkpoints that torch reads and that are not this stage's."""
    contents: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a list": lambda state: [],
        "an empty dict": lambda state: {},
        "no weights": lambda state: state | {"state_dict": {}},
        "weights of another shape": lambda state: state | {"state_dict": {
            name: tensor[:1] for name, tensor in state["state_dict"].items()}},
        "no optimizer": lambda state: state | {"optimizer_states": []},
        "step beyond the end": lambda state: state | {"global_step": 10**9},
        "a negative step": lambda state: state | {"global_step": -5},
        "text for a step": lambda state: state | {"global_step": "x"},
        "NaN weights": lambda state: state | {"state_dict": {
            name: tensor * float("nan") for name, tensor in state["state_dict"].items()}},
        "loops of nothing": lambda state: state | {"loops": {}},
        "callbacks of nobody": lambda state: state | {"callbacks": {"Evil": {}}},
        "another version": lambda state: state | {"pytorch-lightning_version": "99.0"},
    }  # fmt: skip

    def made(change: Callable[[dict[str, Any]], Any]) -> damage.Damage:
        def damaged(path: Path) -> None:
            import torch

            torch.save(change(torch.load(path, weights_only=False)), path)

        return damaged

    for name, change in contents.items():
        yield name, made(change)


def links(world: Path) -> Iterator[Case]:
    """Links out of the runs folder, and folders that only look like a stage."""
    for folder in ("runs/p50", "runs/p50/prune-*", "runs/p50/prune-*/artifact", "runs/p90/prune-*/artifact"):
        yield Case("links", f"clean: {folder} is a link", CLEAN, on(folder, damage.linked("victim")), True)
        yield Case("links", f"report: {folder} is a link", REPORT, on(folder, damage.linked("victim")), True)
    for file in ("runs/p50/prune-*/artifact/model.safetensors", "runs/p50/prune-*/measures.json"):
        yield Case("links", f"clean: {file} is a link", CLEAN, on(file, damage.linked("victim/thesis.txt")), True)
    yield Case("links", "half/p50/prune is a link", HALF, on("half/p50/prune-*", damage.linked("victim")), True)
    checkpoint = on("half/p50/prune-*/checkpoint.ckpt", damage.linked("victim/checkpoint.ckpt"))
    yield Case("links", "checkpoint.ckpt is a link", HALF, checkpoint)
    for name in ("report.json", "report.csv", "pareto.html", "pareto.png", "records.jsonl"):
        yield Case("links", f"{name} is a link", REPORT, _linked_new(f"runs/{name}"), True)
    yield Case("links", "clean: a folder of the user's with a lock", CLEAN, _touched("runs/mine/lock"), True)


def _touched(file: str) -> Callable[[Path], object]:
    return lambda home: (home / file).touch()


def _linked_new(file: str) -> Callable[[Path], object]:
    return lambda home: damage.linked("victim/thesis.txt")(home / file)


def journals(world: Path) -> Iterator[Case]:
    file = "swept/s/sweep/journal.jsonl"
    yield from every("journal", file, SWEEP, damage.BYTES, PLACES, JSON, JOURNAL)
    count = len((world / HOME / file).read_text().splitlines())
    for number in range(count):
        for name, value in (("op_code", 99), ("op_code", "x"), ("study_id", 7), ("trial_id", 99), ("user_attr", [])):
            yield Case("journal", f"line {number}: {name} {value}", SWEEP, on(file, _entry(number, name, value)))


JOURNAL = {name: LINES[name] for name in LINES if "ancest" not in name and "parent" not in name}


def _entry(number: int, name: str, value: Any) -> damage.Damage:
    def change(path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[number][name] = value
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return change


def caches(world: Path) -> Iterator[Case]:
    command = evaluate("packed")
    text = {name: change for name, change in damage.BYTES.items() if name != "deep"}
    for file in ("../cache/kernel/*.so", "../cache/kernel/*.json"):
        for name, change in {**text, **PLACES}.items():
            yield Case("cache", f"{file[9:]}: {name}", command, on_cache(file.removeprefix("../"), change))
    for content in ('["Evil", "Evil"]', "[]", "null", '["Vnni"]', "[1, 2]", '{"a": 1}', '["Kernel", "os"]'):
        change = damage.content(lambda data, content=content: content.encode())
        yield Case("cache", f"race {content}", command, on_cache("cache/kernel/*.json", change))


def on_cache(pattern: str, change: damage.Damage) -> Callable[[Path], object]:
    def damaged(home: Path) -> None:
        for path in sorted(home.parent.glob(pattern)):
            change(path)

    return damaged


PUBLISHED_ROWS = (
    "label\n", "label,disk_mb\n", "disk_mb\n0.1\n", "label,label\na,b\n", "label,disk_mb\nx,NaN\n",
    "label,disk_mb\nx\n",
    "label,disk_mb\nx,1e999\n", "label,disk_mb\nx,-1\n", f"label,disk_mb\n{ESCAPE},0.1\n",
    f"label,disk_mb\n{SCRIPT},1\n",
    "label,disk_mb\n$\\frac{$,0.1\n", 'label,disk_mb\n"x,0.1\n', "label;disk_mb\nx;0.1\n", "label,corpus,kept\nx,y,1\n",
    "label,disk_mb\n" + "x" * 200_000 + ",1\n", "label,\0\nx,1\n", "label,disk_mb,bits_per_byte\nx,0.1,$$\n",
)  # fmt: skip


def tables(world: Path) -> Iterator[Case]:
    """Text files: published points, and corpora."""
    yield from every("published", "published.csv", PUBLISHED, damage.BYTES, PLACES, differs=True)
    for text in PUBLISHED_ROWS:
        change = damage.content(lambda data, text=text: text.encode())
        yield Case("published", repr(text[:40]), PUBLISHED, on("published.csv", change), True)
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        data = (*DATA, f"data.path=table.{suffix}")
        command: Command = evaluate("model", data=data)
        places = {name: change for name, change in PLACES.items() if name != "a terabyte"}  # a corpus may be huge
        yield from every("data", f"table.{suffix}", command, damage.BYTES, places, CODE, differs=True)
    for name, change in {**JSON, **LINES_OF_CURVES}.items():
        command = evaluate("model", data=(*DATA, "data.path=table.jsonl"))
        yield Case("data", f"table.jsonl: {name}", command, on("table.jsonl", change), True)
    yield Case("data", "train on noise", train("new"), on("table.csv", damage.BYTES["noise"]), True)


def cases(world: Path) -> Iterator[Case]:
    for make in (stages, records, links, journals, caches, tables):
        yield from make(world)
