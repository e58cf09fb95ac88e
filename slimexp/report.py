"""Rebuild table, Pareto front, plot and page from the records alone: ``python -m slimexp.report runs``."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from slimexp.analysis import published
from slimexp.analysis.plot import write_png
from slimexp.analysis.section import X_AXES, Section, load
from slimexp.analysis.table import table, write_csv, write_json
from slimexp.file import integrity
from slimexp.host import console
from slimexp.host.progress import working
from slimexp.page import html, search, server
from slimexp.page.content import content
from slimexp.record import record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after one line of error."""
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
    options = parser.parse_args(arguments)
    if options.port is not None and (options.port not in server.PORTS or not options.watch):
        parser.error(f"--port must be 0 to {server.PORTS[-1]} and go with --watch, got {options.port}")
    if options.watch and (options.out or options.wandb):
        parser.error("--watch writes nothing: leave out --out and --wandb")
    folder = options.out or (options.runs if options.runs.is_dir() else options.runs.parent)
    try:
        read = partial(_sections, options.runs, x=options.x, y=options.y, z=options.z, reference=options.reference)
        if options.watch:
            server.watch(options.runs, read, reference=options.reference, port=options.port or 0)
            return 0
        with working("reading the records"):
            sections = read()
        with working("drawing the report"):
            files = write(sections, folder, options.runs)
    except (ValueError, OSError) as error:
        message = console.disk_fault(error, str(folder), setting="--out DIR") or error
        print(f"error: {console.printable(message)}", file=sys.stderr)
        return console.USER_ERROR
    for fault in search.faults(options.runs):
        print(f"warning: {console.printable(fault)}", file=sys.stderr)
    print("\n\n".join(table(section) for section in sections) or "no model is recorded: the page shows the search")
    print("\nwritten: " + ", ".join(map(str, files)))
    if options.wandb:
        from slimexp.logger import wandb_report  # brings in Lightning

        wandb_report.publish(options.runs, partial(write, runs=options.runs))
    return 0


def _sections(runs: Path, **how: Any) -> list[Section]:
    """Sections of the records, see ``analysis.section.load``; none of a search that trained nothing."""
    return [] if not record.files(runs) and search.files(runs) else load(runs, **how)


def write(sections: Sequence[Section], folder: Path, runs: Path) -> list[Path]:
    """Write ``report.csv``, ``report.json``, ``pareto.png`` and ``pareto.html``; without sections the page alone.

    Args:
        sections: Sections of the records in ``runs``.
        folder: Where the files are written; it is made if it does not exist.
        runs: The folder or file that the records were read from.

    Returns:
        Paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "report.csv": write_csv,
        "report.json": write_json,
        "pareto.png": write_png,
        "pareto.html": lambda shown, path: path.write_text(html.render(content(shown, runs, folder)), encoding="utf-8"),
    }
    if not sections:
        writers = {"pareto.html": writers["pareto.html"]}
    for name, writer in writers.items():
        with integrity.aside(folder / name) as partial:
            writer(sections, partial)
    return [folder / name for name in writers]


if __name__ == "__main__":
    sys.exit(main())
