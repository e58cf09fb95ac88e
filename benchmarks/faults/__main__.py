"""The command line: see the package's own text."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import benchmarks.faults as package
from benchmarks.faults import child, fuzz, inputs, kills, models, runs, world
from benchmarks.faults.case import Case, Court, Verdict
from benchmarks.faults.outcome import FORBIDDEN, RIGHT


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where a forbidden outcome occurred."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults", description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="", help="kinds of cases, with commas between; none for no cases")
    parser.add_argument("--name", default="", help="only cases whose name has this text")
    parser.add_argument("--every", type=int, default=1, help="only each n-th case of a kind")
    parser.add_argument("--kills", type=int, default=1000, help="kills; 0 for none")
    parser.add_argument("--minutes-fuzz", type=float, default=0.0, help="minutes of random documents for the readers")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit on the time of a case")
    parser.add_argument("--megabytes", type=float, default=2000.0, help="limit on its memory beyond the warm process")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--scratch", type=Path, help="folder that is kept, with its world; default: a new one")
    parser.add_argument("--json", type=Path, help="file for every verdict")
    options = parser.parse_args(arguments)
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="slimexp-faults-"))
    try:
        return run(options, scratch.resolve())
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)


def run(options: argparse.Namespace, scratch: Path) -> int:
    began = time.monotonic()
    results: dict[str, Any] = {}
    wrong = 0
    if options.minutes_fuzz:
        results["fuzz"] = fuzz.run(minutes=options.minutes_fuzz)
        wrong += sum(bool(one["error"]) for one in results["fuzz"].values())
    if options.kind != "none" or options.kills:
        child.warm()
        undamaged = scratch / "world"
        if not (undamaged / child.HOME).exists():
            world.make(undamaged)
        print(f"the world is made after {time.monotonic() - began:.0f} s", flush=True)
        court = Court(
            undamaged, scratch, seconds=options.seconds, megabytes=options.megabytes, workers=max(1, options.workers)
        )
        cases = chosen(undamaged, options)
        verdicts = list(shown(court, cases))
        results["cases"] = [
            {
                "kind": one.case.kind,
                "name": one.case.name,
                "outcome": one.outcome,
                "detail": one.detail,
                "seconds": one.seconds,
            }
            for one in verdicts
        ]
        print(table(verdicts))
        wrong += sum(one.outcome in FORBIDDEN for one in verdicts)
        if options.kills:
            results["kills"] = kills.run(court, count=options.kills, seed=options.seed)
            print(kills.table(results["kills"]))
            wrong += sum(len(one["differences"]) for one in results["kills"].values())
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{wrong} forbidden outcomes; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def chosen(undamaged: Path, options: argparse.Namespace) -> list[Case]:
    if options.kind == "none":
        return []
    kinds = [kind for kind in options.kind.split(",") if kind]
    made = [*models.cases(undamaged), *runs.cases(undamaged), *inputs.cases()]
    if unknown := set(kinds) - {case.kind for case in made}:
        available = ", ".join(dict.fromkeys(case.kind for case in made))
        raise SystemExit(f"error: there is no kind {', '.join(sorted(unknown))}; there are {available}")
    found = [case for case in made if options.name in case.name and (not kinds or case.kind in kinds)]
    return list(islice(found, 0, None, options.every))


def shown(court: Court, cases: Sequence[Case]) -> list[Verdict]:
    """Verdicts; what is forbidden is printed when it is found."""
    verdicts = []
    for verdict in court.judge(cases):
        verdicts.append(verdict)
        if verdict.outcome in FORBIDDEN:
            case = verdict.case
            print(f"{verdict.outcome.upper():15s} {case.kind}: {case.name!r}: {verdict.detail!r}", flush=True)
        if len(verdicts) % 100 == 0:
            print(f"  {len(verdicts)} of {len(cases)}", flush=True)
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """Cases by kind and outcome, as Markdown."""
    counts = Counter((one.case.kind, one.outcome) for one in verdicts)
    outcomes = [*RIGHT, *(name for name in FORBIDDEN if any(one.outcome == name for one in verdicts))]
    kinds = list(dict.fromkeys(one.case.kind for one in verdicts))
    rows: list[list[Any]] = [[kind, *(counts[kind, name] for name in outcomes)] for kind in kinds]
    rows.append(["all", *(sum(counts[kind, name] for kind in kinds) for name in outcomes)])
    head = ["kind", *outcomes, "cases"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(map(str, [*row, sum(row[1:])])) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
