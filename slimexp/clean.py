"""Free the disk of what is no longer needed: ``python -m slimexp.clean runs --unfinished --dominated``.

Weights go, figures stay: records, curves and logs are left, so every point remains in the report, and the command that
made a stage makes its weights again. Stages that a process works on are passed over, but do not clean while a sweep is
on: its trials read the stages of others. Says what would go; ``--yes`` does it.
"""

import argparse
import fcntl
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slimexp import console
from slimexp.section import Section, load

ARTIFACT = "artifact"
DAY = 86_400  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 after one line of error."""
    with console.output():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        "python -m slimexp.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder with records.jsonl somewhere below")
    parser.add_argument("--unfinished", action="store_true", help="checkpoints and half-written models")
    parser.add_argument("--dominated", action="store_true", help="weights of points on no front of the report")
    parser.add_argument("--days", type=float, default=0.0, metavar="N", help="only what is older (default: 0)")
    parser.add_argument("--yes", action="store_true", help="do it")
    asked = parser.parse_args(arguments)
    if not (asked.unfinished or asked.dominated):
        parser.error("say what may go: --unfinished, --dominated or both")
    if not asked.days >= 0:
        parser.error(f"--days must be >= 0, got {asked.days}")
    try:
        found = load(asked.runs)
        if not asked.runs.is_dir():
            raise ValueError(f"{asked.runs} is a file: name the folder of the runs")
        gone = [*(unfinished(asked.runs) if asked.unfinished else ())]
        gone += dominated(found, asked.runs) if asked.dominated else []
        total = sum(_cleaned(path, days=asked.days, yes=asked.yes) for path in gone)
    except (ValueError, OSError) as error:
        print(
            f"error: {console.disk_fault(error, str(asked.runs), setting='another folder') or error}", file=sys.stderr
        )
        return console.USER_ERROR
    print(f"{total / 1e6:.1f} MB {'freed' if asked.yes else 'would be freed: add --yes to do it'}")
    return 0


def unfinished(runs: Path) -> Iterator[Path]:
    """Checkpoints, and what a kill left half-written."""
    for stage in sorted({path.parent for path in runs.rglob("lock")}):
        yield from sorted(stage.glob("checkpoint.*"))
        yield from sorted(path for path in stage.glob("*artifact*") if path.suffix in (".partial", ".old"))


def dominated(found: Sequence[Section], runs: Path) -> list[Path]:
    """Models of points that are on no front and not dense; a model on the front of one section stays."""
    kept: set[Path] = set()
    beaten: set[Path] = set()
    for section in found:
        for index, point in enumerate(section.points):
            stays = point.dense or index in section.front or not section.drawn(index)
            (kept if stays else beaten).update(runs / artifact for artifact in point.artifacts)
    return sorted(path for path in beaten - kept if path.is_dir())


def _cleaned(path: Path, *, days: float, yes: bool) -> int:
    """Remove ``path``, or say that it would go; bytes it takes, 0 where it stays."""
    with _alone(path.parent) as free:
        if not free or time.time() - path.stat().st_mtime < days * DAY:
            return 0
        files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        print(f"{'removed' if yes else 'would remove'} {path} ({size / 1e6:.1f} MB)")
        if yes:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return size


@contextmanager
def _alone(stage: Path) -> Iterator[bool]:
    """Whether no process works on the stage; none can begin meanwhile."""
    with (stage / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


if __name__ == "__main__":
    sys.exit(main())
