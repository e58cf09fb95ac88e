"""Write an artifact in the format of another engine: ``python -m slimexp.export ARTIFACT format=onnx out=FOLDER``.

The engine itself loads what was written, and its logits and greedy tokens are compared with those of plain PyTorch in
float32 before the export is called done; one that fails is removed. Then the two are timed.

``format.KEY=VALUE`` sets an option of the format.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from slimexp.config import binding
from slimexp.config.composition import CONF_DIR, options
from slimexp.file import integrity
from slimexp.file.bounded import one_line
from slimexp.host import console
from slimexp.host.progress import working

if TYPE_CHECKING:
    from slimexp.format.base import Artifact, Format
    from slimexp.format.report import Report

REPORT = "slimexp_export.json"  # transformers calls a file of its own export.json: its folder is not ours to replace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after an error."""
    with console.output(), console.interruptible():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = console.Parser(
        "python -m slimexp.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=console.path, help="folder of an artifact")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="format, out, and format.KEY")
    given = parser.parse_args(arguments)
    try:
        name, out, values = settings(given.settings)
        with working("importing the libraries"):
            from slimexp.config.build import build
            from slimexp.format.base import Artifact
            from slimexp.format.report import add_to_record
        kind: Format = build(_chosen(name, values))
        model = Artifact(given.artifact)
        folder = out or given.artifact.parent / name
        report = export(model, kind, name, folder)
    except (ValueError, OSError) as error:
        print(f"error: {console.printable(error, most=None)}", file=sys.stderr)
        return console.USER_ERROR
    print(f"{folder}: {report}")
    try:
        if (records := add_to_record(given.artifact, report)) is not None:
            print(f"recorded in {records}")
    except (ValueError, OSError) as error:  # the export is whole, and its report lies beside it
        print(f"not recorded: {console.printable(error, most=None)}", file=sys.stderr)
    return 0


def _chosen(name: str, values: dict[str, Any]) -> Any:
    """Configuration of a format.

    Raises:
        ValueError: It has no such option, or a value is of another type.
    """
    node = OmegaConf.merge(OmegaConf.load(CONF_DIR / "format" / f"{name}.yaml"), values)
    if wrong := list(binding.faults("format", OmegaConf.create({"format": node}), "format")):
        raise ValueError("; ".join(wrong))
    return node


def settings(given: Sequence[str]) -> tuple[str, Path | None, dict[str, Any]]:
    """Format, folder to write to, and options of the format.

    Raises:
        ValueError: A setting is none, the format is missing, or there is no such format.
    """
    known = options("format")
    if wrong := [text for text in given if not re.match(r"(format(\.\w+)?|out)=.", text)]:
        raise ValueError(f"'{wrong[0]}' is no setting: write format=NAME, format.KEY=VALUE or out=FOLDER")
    names = [text.partition("=")[2] for text in given if text.startswith("format=")]
    if not names:
        raise ValueError(f"give a format: format={'|'.join(known)}")
    if (name := names[-1]) not in known:
        close = get_close_matches(name, known, n=1)
        hint = f", did you mean '{close[0]}'?" if close else ":"
        raise ValueError(f"there is no format '{name}'{hint} there are {', '.join(known)}")
    dotted = [text.removeprefix("format.") for text in given if text.startswith("format.")]
    folders = [text.partition("=")[2] for text in given if text.startswith("out=")]
    try:
        chosen: Any = OmegaConf.to_container(OmegaConf.from_dotlist(dotted))
    except Exception as error:  # of YAML
        raise ValueError(f"cannot read {', '.join(dotted)} ({one_line(error)}): write format.KEY=VALUE") from error
    return name, Path(folders[-1]) if folders else None, chosen


def export(model: "Artifact", kind: "Format", name: str, folder: Path, *, timed: bool = True) -> "Report":
    """Write, load, compare and time.

    Args:
        model: The artifact.
        kind: The format.
        name: Its name.
        folder: Where to; replaced where it is an earlier export.
        timed: Whether to time it.

    Raises:
        ValueError: The artifact is damaged, the format cannot hold it, a package is missing, ``folder`` is something
            else, or the engine computes something else; nothing is left of the export then.
    """
    model.content  # noqa: B018 (checked first)
    if why := kind.refusal(model):
        raise ValueError(f"{model.folder} cannot be exported as {name}: {why}")
    kind.require()
    if folder.exists() and not (folder / REPORT).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"'{folder}' exists and is no export: give another folder by out=")
    with integrity.aside(folder) as partial:  # removes what an engine left that crashed
        partial.mkdir(parents=True)
        try:
            report = _written_and_compared(model, kind, name, partial, timed=timed)
        except (ValueError, OSError, MemoryError):
            raise
        except Exception as error:  # converters of others fail in every way
            why = f"{type(error).__name__}: {one_line(error, most=200)}"
            raise ValueError(f"what writes or runs {name} fails on this model ({why}): take another format") from error
        (partial / REPORT).write_text(report.to_json())
        integrity.remove(folder)
    return report


def _written_and_compared(model: "Artifact", kind: "Format", name: str, folder: Path, *, timed: bool) -> "Report":
    """Write to an empty folder, load from there, compare and time; arguments and errors are those of ``export``."""
    from slimexp.format.report import Report
    from slimexp.format.speed import speed
    from slimexp.format.verification import verify, verify_as_run

    began = time.monotonic()
    with working(f"writing {name}"):
        facts = kind.write(model, folder)
    with working(f"comparing {name} with PyTorch"):
        running = kind.load(model, folder)
        agreement, agreement_as_run = verify(model, kind, running), None
        if (as_run := kind.as_run(model, folder)) is not None:
            running, agreement_as_run = as_run, verify_as_run(model, kind, as_run)
    return Report(
        format=name,
        artifact=str(model.content.get("key")),
        disk_mb=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
        seconds=time.monotonic() - began,
        facts=facts,
        agreement=agreement,
        as_run=agreement_as_run,
        speed=speed(model, running) if timed else {},
    )


if __name__ == "__main__":
    sys.exit(main())
