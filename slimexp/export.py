"""Write an artifact in the format of another engine: ``python -m slimexp.export ARTIFACT format=onnx out=FOLDER``.

The engine itself loads what was written, and its logits and greedy tokens are compared with those of plain PyTorch in
float32 before the export is called done; one that fails is removed. Then the two are timed.

``format.KEY=VALUE`` sets an option of the format.
"""

import argparse
import os
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
from slimexp.serialization import manifest

if TYPE_CHECKING:
    from slimexp.format.base import Artifact, Facts, Format
    from slimexp.format.report import Report

_ELSEWHERE = "give another folder by out=FOLDER"
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
        folder = out or given.artifact.parent / name
        node = _chosen(name, values)
        manifest.read(given.artifact)  # importing the libraries takes longer
        _check_place(folder)
        with working("importing the libraries"):
            from slimexp.config.build import build
            from slimexp.format.base import Artifact
            from slimexp.format.report import add_to_record
        kind: Format = build(node)
        model = Artifact(given.artifact)
        report = export(model, kind, name, folder)
    except (ValueError, OSError) as error:
        why = console.disk_fault(error, str(folder), setting="out=FOLDER") if isinstance(error, OSError) else None
        print(f"error: {console.printable(why or error, most=None)}", file=sys.stderr)
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


def _check_place(folder: Path) -> None:
    """Refuse to write over anything but an earlier export.

    Raises:
        ValueError: ``folder`` is a file, or holds something else.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder: {_ELSEWHERE}")
    if folder.is_dir() and not (folder / REPORT).exists() and any(folder.iterdir()):
        raise ValueError(f"'{folder}' exists and is no export: {_ELSEWHERE}")


def _make(made: Path, folder: Path) -> None:
    """Make a folder on the way to ``folder``.

    Raises:
        ValueError: It cannot be made.
    """
    try:
        made.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to '{folder}' ({error.strerror}): {_ELSEWHERE}") from error


def _way_out(model: "Artifact", refusing: str) -> str:
    """The formats that hold a model as it is, by their default settings, other than one that does not."""
    from slimexp.config.build import build

    kinds: dict[str, Format] = {name: build(_chosen(name, {})) for name in options("format") if name != refusing}
    holding = [f"format={name}" for name, kind in kinds.items() if kind.why_not(model) is None]
    return f"these hold it: {', '.join(holding)}" if holding else "no other format holds it"


def _written(model: "Artifact", kind: "Format", name: str, folder: Path) -> "Facts":
    """Write a model; what the format says of it.

    Raises:
        ValueError: The format cannot hold it, which shows only in its weights.
    """
    try:
        return kind.write(model, folder)
    except ValueError as error:
        why = one_line(error, most=400)
        raise ValueError(f"{model.folder} cannot be exported as {name}: {why}; {_way_out(model, name)}") from error


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
    if why := kind.why_not(model):
        raise ValueError(f"{model.folder} cannot be exported as {name}: {why}; {_way_out(model, name)}")
    kind.require()
    _check_place(folder)
    _make(folder.parent, folder)
    with integrity.aside(folder) as partial:  # removes what an engine left that crashed
        _make(partial, folder)
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
        facts = _written(model, kind, name, folder)
    with working(f"comparing {name} with PyTorch"):
        running = kind.load(model, folder)
        agreement, agreement_as_run = verify(model, kind, running), None
        if (as_run := kind.as_run(model, folder)) is not None:
            running, agreement_as_run = as_run, verify_as_run(model, kind, as_run)
    seconds = time.monotonic() - began
    with working(f"timing {name} beside PyTorch"):
        figures = speed(model, running) if timed else {}
    return Report(
        format=name,
        artifact=str(model.content.get("key")),
        disk_mb=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
        seconds=seconds,
        facts=facts,
        agreement=agreement,
        as_run=agreement_as_run,
        speed=figures,
    )


if __name__ == "__main__":
    sys.exit(main())
