"""Free the disk of what is no longer needed: ``python -m slimexp.clean runs --unfinished --dominated --caches``.

Weights go, figures stay: records, curves and logs are left, so every point remains in the report, and
``python -m slimexp.train`` with the overrides of its record (the page shows them) makes its weights again. What is on
the front of the chosen axes, may belong there within its uncertainty, or serves another run as model or teacher
stays, and so does all that no stage of these runs wrote. Nothing goes while a run is at work. Says what would go;
``--yes`` does it.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slimexp.analysis.section import Section, load
from slimexp.host import console
from slimexp.record import removal
from slimexp.record.record import FILE, Record, read
from slimexp.record.settings import flat
from slimexp.record.stage import CHECKPOINT, RUNNING

DAY = 86_400  # seconds
STUCK = 1  # exit status


@dataclass(frozen=True, order=True)
class Removable:
    """Something that may be removed.

    Attributes:
        path: A model, a checkpoint or a leftover of one, in the folder of a stage; or what is kept of a teacher.
        key: Key of the stage that made the model; ``None`` for what is unfinished.
        first: Whether that stage is the first of its run.
        lock: Name of the lock beside it, which who works on it holds.
    """

    path: Path
    key: str | None = None
    first: bool = False
    lock: str = removal.LOCK

    def check(self, stage: int, name: str) -> int:
        """Bytes of disk that removing ``name``, its present name in the opened folder ``stage``, would free.

        Raises:
            removal.NotRemovable: It is nothing that this package wrote, or is needed.
            OSError: It cannot be examined.
        """
        if self.key is not None:
            removal.check_model(stage, name, self.key, root=self.first)
        return removal.size(stage, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 where something could not be removed, or 2 after one line of error."""
    with console.output(), console.interruptible("what is removed is gone, the same command goes on from there"):
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = console.Parser(
        "python -m slimexp.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=console.path, help="folder with records.jsonl somewhere below")
    parser.add_argument(
        "--unfinished", action="store_true", help="checkpoints, half-written models, what is set aside as damaged"
    )
    parser.add_argument("--caches", action="store_true", help="what is kept of teachers, and made anew where need be")
    parser.add_argument("--dominated", action="store_true", help="weights of points on no front of the report")
    for axis in ("x", "y", "z"):
        parser.add_argument(f"--{axis}", metavar="METRIC", help="axis of that front, as of slimexp.report")
    parser.add_argument("--days", type=float, default=0.0, metavar="N", help="only what is older (default: 0)")
    parser.add_argument("--yes", action="store_true", help="do it")
    options = parser.parse_args(arguments)
    if not (options.unfinished or options.dominated or options.caches):
        parser.error("say what may go: --unfinished, --dominated, --caches or several")
    if not options.days >= 0:
        parser.error(f"--days must be >= 0, got {options.days}")
    try:
        sections = load(options.runs, x=options.x, y=options.y, z=options.z)
        if not options.runs.is_dir():
            raise ValueError(f"{options.runs} is a file: name the folder of the runs")
        runs = options.runs.resolve()
        with ExitStack() as locks:
            _hold(locks, removal.locks(runs))
            removables = [*(unfinished(runs) if options.unfinished else ())]
            removables += dominated(sections, runs) if options.dominated else []
            removables += caches(runs) if options.caches else []
            if options.yes:
                _hold(locks, _absent_locks(removables, runs))
            sizes = [
                _clean(removable, runs, shown=options.runs, days=options.days, yes=options.yes)
                for removable in removables
            ]
    except (ValueError, OSError, MemoryError) as error:
        why = console.disk_fault(error, str(options.runs), setting="another folder") or error
        print(f"error: {console.printable(why)}", file=sys.stderr)
        return console.USER_ERROR
    total = sum(bytes_ for bytes_ in sizes if bytes_ is not None)
    print(f"{total / 1e6:.1f} MB {'freed' if options.yes else 'would be freed: add --yes to do it'}")
    return STUCK if None in sizes else 0


def unfinished(runs: Path) -> Iterator[Removable]:
    """Checkpoints, what a kill left half-written, and what was set aside as damaged.

    A model set aside to be replaced stays where it is the last.
    """
    for stage in removal.stages(runs):
        whole = (stage / removal.MODEL / removal.MANIFEST).is_file()
        for name in sorted(os.listdir(stage)):
            half = removal.HALF.fullmatch(name)
            if (
                CHECKPOINT.fullmatch(name)
                or removal.DAMAGED.fullmatch(name)
                or (half and (half["kind"] == "partial" or whole))
            ):
                yield Removable(stage / name)


def caches(runs: Path) -> Iterator[Removable]:
    """What is kept of teachers: the parts of every teacher cache, and texts that they wrote."""
    for at, folders, files in os.walk(runs):
        if Path(at).parent.name == removal.CACHES and {removal.LOCK, removal.CACHE} <= set(files):
            names = (name for name in sorted(folders) if removal.PART.fullmatch(name) or removal.HALF.fullmatch(name))
            yield from (Removable(Path(at, name)) for name in names)
            folders.clear()
        if Path(at).name == removal.COMPLETIONS:
            for text in filter(None, map(removal.TEXTS.fullmatch, sorted(files))):
                if (lock := f"{text['key']}.lock") in files:
                    yield Removable(Path(at, text[0]), lock=lock)
        folders.sort()


def dominated(sections: Sequence[Section], runs: Path) -> list[Removable]:
    """Models that are dominated in some section, needed in none, and named by no record as a model or teacher."""
    beaten: set[str] = set()
    needed: set[str] = set()
    for section in sections:
        for index, point in enumerate(section.points):
            useful = point.dense or index in section.front or section.undecided(index) or not section.drawn(index)
            (needed if useful else beaten).update(point.keys)
    rows = list(_rows(runs))
    named, stages = _named(rows)
    named |= {(folder / row.artifact).resolve() for folder, row in rows if row.key in needed if _is_path(row.artifact)}
    models = {
        model for folder, row in rows if row.key in beaten - needed and (model := _model(folder, row)) is not None
    }
    return sorted(
        model
        for model in models
        if model.path.parent.name not in stages and not any(path.is_relative_to(model.path) for path in named)
        if os.path.lexists(model.path)
    )


def _rows(runs: Path) -> Iterator[tuple[Path, Record]]:
    """Every record below ``runs``, with the runs folder that its paths start from."""
    for at, folders, files in os.walk(runs):
        folders.sort()
        if FILE in files:
            with suppress(OSError):  # ``load`` has named what cannot be read
                yield from ((Path(at), row) for row in read(Path(at, FILE), quiet=True))


def _model(folder: Path, row: Record) -> Removable | None:
    """The model that a stage of the runs in ``folder`` wrote; ``None`` for one that was only measured."""
    parts = PurePosixPath(row.artifact).parts if _is_path(row.artifact) else ()
    own = len(parts) > 2 and parts[-2:] == (f"{row.stage}-{row.key}", removal.MODEL)
    if not own or ".." in parts or parts[0] == "/" or not removal.STAGE.fullmatch(parts[-2]):
        return None
    return Removable(folder.joinpath(*parts), row.key, first=row.parent is None)


def _named(rows: Sequence[tuple[Path, Record]]) -> tuple[set[Path], set[str]]:
    """Paths that configurations name, and names of stages in them: a run may have been started from anywhere."""
    texts = {(folder, text) for folder, row in rows for text in _texts(row.config)}
    paths: set[Path] = set()
    for folder, text in texts:
        home = Path(os.path.expanduser(text))
        paths |= {Path(os.path.realpath(start / home)) for start in (Path.cwd(), folder, *folder.parents)}
    return paths, {part for _, text in texts for part in PurePosixPath(text).parts if removal.STAGE.fullmatch(part)}


def _texts(tree: Any) -> Iterator[str]:
    """Values of a configuration that may be paths."""
    yield from (leaf for _, leaf in flat(tree) if _is_path(leaf))


def _is_path(leaf: object) -> bool:
    """Whether the system could take a value for a path."""
    encoded = leaf.encode(errors="replace") if isinstance(leaf, str) else b""
    return 0 < len(encoded) < 4096 and b"\0" not in encoded and encoded.decode() == leaf


def _hold(stack: ExitStack, locks: Iterator[Path]) -> None:
    """Take the locks of runs and sweeps, so that none begins; one at work reads the stages of others.

    Raises:
        ValueError: A run or a sweep is at work, or its lock cannot be examined.
    """
    for lock in locks:
        try:
            free = stack.enter_context(removal.alone(lock, create=not lock.exists()))
        except removal.NotRemovable as why:
            raise ValueError(f"whether a run is at work in {lock.parent} is not known: {why}") from None
        if not free:
            kind = "run" if lock.name == RUNNING else "sweep"
            raise ValueError(f"a {kind} is at work in {_working(lock)}: clean when it has ended")


def _working(lock: Path) -> Path:
    """The stage that a run at work has locked; the folder of the lock where there is none."""
    for stage in removal.stages(lock.parent) if lock.name == RUNNING else ():
        try:
            with removal.alone(stage / removal.LOCK) as free:
                if not free:
                    return stage
        except removal.NotRemovable:
            continue
    return lock.parent


def _absent_locks(removables: Sequence[Removable], runs: Path) -> Iterator[Path]:
    """Locks of those runs folders in which something is removed and that no run has locked yet."""
    parents = {folder for removable in removables for folder in removable.path.parents if folder.is_relative_to(runs)}
    for folder in sorted(parents):
        if (folder / FILE).is_file() and not os.path.lexists(folder / RUNNING):
            yield folder / RUNNING


def _clean(removable: Removable, runs: Path, *, shown: Path, days: float, yes: bool) -> int | None:
    """Remove something, or print that it would be; bytes freed, 0 where it stays, ``None`` where removing fails."""
    path, name = console.printable(shown / removable.path.relative_to(runs)), removable.path.name
    try:
        with removal.opened(removable.path.parent, runs) as stage, removal.alone(removable.lock, stage) as free:
            if not free:
                print(f"stays: {path}: a process works on it")
                return 0
            changed = os.stat(name, dir_fd=stage, follow_symlinks=False).st_mtime
            if time.time() - changed < days * DAY:
                return 0
            taken = removable.check(stage, name)
            if yes:
                taken = removal.remove(stage, name, lambda present: removable.check(stage, present))
            print(f"{'removed' if yes else 'would remove'} {path} ({taken / 1e6:.1f} MB)")
            return taken
    except FileNotFoundError:
        return 0  # another process was faster
    except removal.NotRemovable as why:
        print(f"stays: {path}: {console.printable(why)}")
        return 0
    except OSError as error:
        print(f"cannot remove {path}: {console.printable(error.strerror or error)}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
