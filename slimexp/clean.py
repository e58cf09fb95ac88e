"""Free the disk of what is no longer needed: ``python -m slimexp.clean runs --unfinished --dominated``.

Weights go, figures stay: records, curves and logs are left, so every point remains in the report, and
``python -m slimexp.train`` with the overrides of its record (the page shows them) makes its weights again. What is on
the front of the axes asked for, may belong there for all that is known, or serves another run as model or teacher
stays. Says what would go; ``--yes`` does it.
"""

import argparse
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slimexp import console
from slimexp.point import flat
from slimexp.record import Record, read
from slimexp.section import Section, load

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
    parser.add_argument(
        "--unfinished", action="store_true", help="checkpoints, half-written models, what is set aside as damaged"
    )
    parser.add_argument("--dominated", action="store_true", help="weights of points on no front of the report")
    for axis in ("x", "y", "z"):
        parser.add_argument(f"--{axis}", metavar="METRIC", help="axis of that front, as of slimexp.report")
    parser.add_argument("--days", type=float, default=0.0, metavar="N", help="only what is older (default: 0)")
    parser.add_argument("--yes", action="store_true", help="do it")
    asked = parser.parse_args(arguments)
    if not (asked.unfinished or asked.dominated):
        parser.error("say what may go: --unfinished, --dominated or both")
    if not asked.days >= 0:
        parser.error(f"--days must be >= 0, got {asked.days}")
    try:
        found = load(asked.runs, x=asked.x, y=asked.y, z=asked.z)
        if not asked.runs.is_dir():
            raise ValueError(f"{asked.runs} is a file: name the folder of the runs")
        _refuse_sweeps(asked.runs)
        gone = [*(unfinished(asked.runs) if asked.unfinished else ())]
        gone += dominated(found, read(asked.runs), asked.runs) if asked.dominated else []
        total = sum(_cleaned(path, days=asked.days, yes=asked.yes) for path in gone)
    except (ValueError, OSError) as error:
        print(
            f"error: {console.disk_fault(error, str(asked.runs), setting='another folder') or error}", file=sys.stderr
        )
        return console.USER_ERROR
    print(f"{total / 1e6:.1f} MB {'freed' if asked.yes else 'would be freed: add --yes to do it'}")
    return 0


def unfinished(runs: Path) -> Iterator[Path]:
    """Checkpoints, what a kill left half-written and what was set aside as damaged.

    A model set aside to be replaced stays where it is the last.
    """
    for stage in sorted({path.parent for path in runs.rglob("lock") if path.is_file()}):
        yield from sorted(stage.glob("checkpoint.*"))
        yield from sorted(stage.glob("damaged-*"))
        yield from sorted(stage.glob(".artifact.*.partial"))
        if (stage / "artifact").is_dir():
            yield from sorted(stage.glob(".artifact.*.old"))


def dominated(found: Sequence[Section], records: Sequence[Record], runs: Path) -> list[Path]:
    """Models that some section's front beats, no section needs and no record names as a model or teacher."""
    kept = {Path(leaf).resolve() for record in records for _, leaf in flat(record.config) if isinstance(leaf, str)}
    beaten: set[Path] = set()
    for section in found:
        for index, point in enumerate(section.points):
            useful = index in section.front or section.undecided(index) or not section.drawn(index)
            models = {(runs / artifact).resolve() for artifact in point.artifacts}
            kept |= models if point.dense or useful else set()
            beaten |= models
    return sorted(path for path in beaten - kept if path.is_dir())


def _refuse_sweeps(runs: Path) -> None:
    """Trials of a sweep read the stages of others, whatever the locks of these say."""
    for lock in runs.rglob("sweep/lock"):
        with _alone(lock.parent) as free:
            if not free:
                raise ValueError(f"a sweep is at work in {lock.parent}: clean when it has ended")


def _cleaned(path: Path, *, days: float, yes: bool) -> int:
    """Remove ``path``, or say that it would go; bytes it takes, 0 where it stays."""
    with _alone(path.parent) as free:
        if not free or not path.exists() or time.time() - path.stat().st_mtime < days * DAY:
            return 0
        files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        print(f"{'removed' if yes else 'would remove'} {path} ({size / 1e6:.1f} MB)")
        if yes:
            _remove(path)
        return size


def _remove(path: Path) -> None:
    """Under another name first: half a model must not be taken for a finished one."""
    if not path.is_dir():
        path.unlink()
        return
    going = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.partial")
    os.replace(path, going)
    shutil.rmtree(going)


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
