"""Rebuild table, Pareto front, plot and page from the records alone: ``python -m slimexp.report runs``."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from slimexp.analysis import published
from slimexp.analysis.plot import write_png
from slimexp.analysis.section import X_AXES, Section, load
from slimexp.analysis.table import table, write_csv, write_json
from slimexp.host import console
from slimexp.page import html, server
from slimexp.page.content import content


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 after one line of error."""
    with console.output(), console.interruptible():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = console.Parser("python -m slimexp.report", description=__doc__)
    parser.add_argument("runs", type=console.path, help="folder with records.jsonl somewhere below, or one such file")
    parser.add_argument("--x", metavar="METRIC", help=f"horizontal axis (default: {X_AXES[0]})")
    parser.add_argument("--y", metavar="METRIC", help="vertical axis (default: the headline of each corpus)")
    parser.add_argument("--z", metavar="METRIC", help="a third objective, for a front of three (default: none)")
    parser.add_argument("--reference", metavar="FILE", type=console.path, help=published.FORMAT)
    parser.add_argument("--out", metavar="DIR", type=console.path, help="where the files go (default: the runs folder)")
    parser.add_argument("--wandb", action="store_true", help="a W&B run per sweep with its front; offline if need be")
    parser.add_argument("--watch", action="store_true", help="serve the page to this machine, live, and write nothing")
    parser.add_argument("--port", metavar="N", type=int, help="of --watch (default: any that is free)")
    asked = parser.parse_args(arguments)
    if asked.port is not None and (asked.port not in server.PORTS or not asked.watch):
        parser.error(f"--port must be 0 to {server.PORTS[-1]} and go with --watch, got {asked.port}")
    if asked.watch and (asked.out or asked.wandb):
        parser.error("--watch writes nothing: leave out --out and --wandb")
    folder = asked.out or (asked.runs if asked.runs.is_dir() else asked.runs.parent)
    try:
        look = partial(load, asked.runs, x=asked.x, y=asked.y, z=asked.z, reference=asked.reference)
        if asked.watch:
            server.watch(asked.runs, look, reference=asked.reference, port=asked.port or 0)
            return 0
        found = look()
        files = write(found, folder, asked.runs)
    except (ValueError, OSError) as error:
        told = console.disk_fault(error, str(folder), setting="--out DIR") or error
        print(f"error: {console.printable(told)}", file=sys.stderr)
        return console.USER_ERROR
    print("\n\n".join(table(section) for section in found))
    print("\nwritten: " + ", ".join(map(str, files)))
    if asked.wandb:
        from slimexp.logger import wandb_report  # brings in Lightning

        wandb_report.publish(asked.runs, partial(write, runs=asked.runs))
    return 0


def write(found: Sequence[Section], folder: Path, runs: Path) -> list[Path]:
    """Write ``report.csv``, ``report.json``, ``pareto.png`` and ``pareto.html`` of ``runs``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "report.csv": write_csv,
        "report.json": write_json,
        "pareto.png": write_png,
        "pareto.html": lambda found, path: path.write_text(html.render(content(found, runs, folder)), encoding="utf-8"),
    }
    for name, writer in writers.items():
        with aside(folder / name) as partial:
            writer(found, partial)
    return [folder / name for name in writers]


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Another name for what takes ``path``'s when it is whole: a link there is replaced, and not written through.

    What processes that were killed left under such names is removed.
    """
    for left in path.parent.glob(f".*.{path.name}"):
        if (pid := left.name.split(".")[1]).isdigit() and not _is_alive(int(pid)):
            left.unlink(missing_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


if __name__ == "__main__":
    sys.exit(main())
