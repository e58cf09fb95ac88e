"""What came of a command: its figures, what it left on disk, and the judgement of both."""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.faults.child import HOME, Ended

RIGHT = ("ok", "refused", "redone", "skipped")
FORBIDDEN = (
    "code run",
    "foreign touched",
    "escape",
    "traceback",
    "silent",
    "mute",
    "endless",
    "crash",
    "huge",
)
CANARY = "canary"  # a file that only code out of a damaged file would write
SCRIPT = "<script>alert(1)</script>"  # what must never stand on a page as it is
_NEAR = 1e-3  # kernels may differ by so much of a figure
_MOST_LINES = 12  # of an error, a line for each thing that is wrong
# figures that change from run to run: times, what the fastest kernel holds, and what a longer config adds to
_VARIES = re.compile(r"second|latency|time|_s$|resident_mb|disk_mb|size_ratio")
_NOTICE = re.compile(
    r"skip|damage|again|anew|ignor|left out|cannot be read|not used|no record|unreadable|redo|warning", re.IGNORECASE
)
_CONTROL = re.compile(r"\x1b\[(31mred|2J)")  # as cases put it into files; libraries have colours of their own

Figures = dict[str, Any]
Snapshot = dict[str, str]


def trained(runs: str) -> Callable[[Path, str], Figures]:
    """Records' figures, weights and curves of a runs folder."""

    def read(home: Path, output: str) -> Figures:
        found = _records(home / runs)
        for path in sorted((home / runs).glob("*/*/artifact/model.safetensors")):
            name = path.parents[1].name.rpartition("-")[0]
            found[f"weights {path.parents[2].name}/{name} {_digest(path)}"] = True
        for path in sorted((home / runs).glob("*/*/curves.jsonl")):
            name = path.parent.name.rpartition("-")[0]
            for number, row in enumerate(_lines(path)):
                kept = {key: value for key, value in flat(row).items() if not _VARIES.search(key)}
                found |= {f"curve {path.parents[1].name}/{name} {number} {key}": value for key, value in kept.items()}
        return found

    return read


def evaluated(runs: str) -> Callable[[Path, str], Figures]:
    return lambda home, output: _records(home / runs)


def reported(runs: str) -> Callable[[Path, str], Figures]:
    """Every point's figures by section and label, from ``report.json``."""

    def read(home: Path, output: str) -> Figures:
        try:
            sections = json.loads((home / runs / "report.json").read_text())
            return {
                f"{section['title']}: {point['label']}: {name}": figure.get("mean", figure)
                for section in sections
                for point in [*section["points"], *section.get("published", [])]
                for name, figure in point["figures"].items()
                if not _VARIES.search(name)
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    return read


def printed(home: Path, output: str) -> Figures:
    return {line: True for line in output.splitlines() if line.strip()}


def remaining(runs: str) -> Callable[[Path, str], Figures]:
    """Files that are left."""
    return lambda home, output: {
        path.relative_to(home).as_posix(): True for path in sorted((home / runs).rglob("*")) if not path.is_dir()
    }


def nothing(home: Path, output: str) -> Figures:
    return {}


def flat(tree: Any, path: str = "") -> Figures:
    if isinstance(tree, Mapping):
        return {key: value for name, item in tree.items() for key, value in flat(item, f"{path}.{name}").items()}
    return {path: tree}


def snapshot(root: Path, owned: str) -> Snapshot:
    """Digests of everything that a command whose folder is ``owned`` must leave alone."""
    found = {}
    free = {root / name for name in ("cache", "stdout", "stderr", "changes", CANARY)}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) not in free and name != "__pycache__"]
        for path in (Path(folder, name) for name in [*folders, *files]):
            inside = path.relative_to(root / HOME).parts if path.is_relative_to(root / HOME) else ()
            foreign = inside[:1] != (owned,) or "mine" in inside
            if path not in free and foreign and path != root / HOME / owned:
                found[str(path.relative_to(root))] = _digest(path)
    return found


def judge(
    ended: Ended,
    root: Path,
    *,
    changed: str | None,
    result: Figures,
    right: Figures,
    usual: str,
    differs: bool,
) -> tuple[str, str]:
    """The outcome of a case and what shows it.

    Args:
        ended: How the command ended.
        root: The case's folder.
        changed: A file that it had to leave alone and did not.
        result: What came out.
        right: What comes out of the undamaged world.
        usual: What the command says there.
        differs: Whether other figures are right, as of a model that is another.
    """
    if (root / CANARY).exists():
        return "code run", f"status {ended.status}"
    if changed:
        return "foreign touched", changed
    if ended.limit:
        return ended.limit, f"after {ended.seconds:.1f} s"
    if ended.status < 0:
        return "crash", f"signal {-ended.status}"
    if "Traceback (most recent call last)" in ended.output:
        return "traceback", _last(ended.stderr)
    if (found := _CONTROL.search(ended.output)) or _on_page(root):
        return "escape", repr(found[0]) if found else "markup on the page"
    if ended.status:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        explained = any("error:" in line for line in lines[-_MOST_LINES:])
        explained = explained or (ended.status == 1 and "none fits" in ended.stdout)
        return ("refused" if explained and len(lines) <= _MOST_LINES else "mute"), _last(ended.output)
    return _compare(result, right, _news(ended.output, usual), differs)


def _compare(result: Figures, right: Figures, news: list[str], differs: bool) -> tuple[str, str]:
    notice = next((line for line in news if _NOTICE.search(line)), "")
    shared = result.keys() & right.keys()
    other = sorted(key for key in shared if not _same(result[key], right[key]))
    lost, added = sorted(right.keys() - shared), sorted(result.keys() - shared)
    if not other and not lost and not added:
        return ("redone" if notice else "ok"), notice
    if notice and not other:
        return "skipped", notice
    if differs:
        return "ok", "another thing, and taken as such"
    return "silent", f"other {other[:1]}, lost {lost[:1]}, added {added[:1]}; said {notice or 'nothing'}"


def _news(output: str, usual: str) -> list[str]:
    """Lines that the undamaged command does not say; numbers apart."""
    usual_lines = {_plain(line) for line in usual.splitlines()}
    return [line for line in output.splitlines() if line.strip() and _plain(line) not in usual_lines]


def _plain(line: str) -> str:
    return re.sub(r"[\d.]+", "#", line).strip()


def _same(one: Any, other: Any) -> bool:
    if type(one) is type(other) is float:
        return math.isclose(one, other, rel_tol=_NEAR, abs_tol=1e-9)
    return bool(one == other)


def _records(runs: Path) -> Figures:
    """Figures of the last line of every run and stage."""
    found: Figures = {}
    for row in _lines(runs / "records.jsonl"):
        if isinstance(row, dict) and isinstance(row.get("metrics"), dict):
            name = f"{row.get('name')}/{row.get('stage')}"
            found |= {f"{name} {key}": value for key, value in row["metrics"].items() if not _VARIES.search(key)}
    return found


def _lines(path: Path) -> list[Any]:
    """JSON lines of a regular file, without those that are none."""
    rows = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
    return rows


def _digest(path: Path) -> str:
    kind = path.lstat()
    if stat.S_ISLNK(kind.st_mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(kind.st_mode) or kind.st_size > 1e8:
        return f"{stat.S_IFMT(kind.st_mode)}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _on_page(root: Path) -> bool:
    pages = (root / HOME).glob("*/pareto.html")
    return any(SCRIPT in page.read_text(errors="replace") for page in pages if page.is_file())


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:300]
