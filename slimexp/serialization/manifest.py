"""The manifest of an artifact: what was done to the model, as data. Reading one imports and runs nothing that it names.

Every field is checked when it is read. The classes of attachments are those in ``ATTACHMENTS``, their arguments those
of the constructors, so that what builds them afterwards can only build what slimexp saves.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slimexp.config import renamed
from slimexp.config.annotation import is_of_type
from slimexp.config.signature import Parameter, signature
from slimexp.file import integrity
from slimexp.file.bounded import OWN_MB, read_object
from slimexp.file.integrity import Damaged
from slimexp.host.progress import working

FORMAT = 2  # 1: masks were a byte for each weight, and training.safetensors held all tensors; it is read as before
NAME = "manifest.json"
TRAINING = "training.safetensors"  # what a later stage goes on from, where masks or quantizers sit on weights
DROPPED = "training.dropped"  # stands beside the other files where that was removed on purpose
FAMILIES = ("seq2seq", "causal_lm", "classification")
CACHE_BITS = (None, 4, 8)
_BELOW = 3  # folders between one of runs and an artifact: RUNS/NAME/STAGE-KEY/artifact
LARGEST = 2**24  # the largest length, size of a shape and other whole number

ATTACHMENTS = frozenset(
    {
        "slimexp.weight.mask.Mask",
        "slimexp.quantizer.activation.PerToken",
        "slimexp.quantizer.activation.Ranged",
        "slimexp.quantizer.cached.Cached",
        "slimexp.quantizer.fp8.Fp8",
        "slimexp.quantizer.fp8_static.Fp8Static",
        "slimexp.quantizer.fp8_token.Fp8Token",
        "slimexp.quantizer.hqq.Hqq",
        "slimexp.quantizer.least_error.LeastError",
        "slimexp.quantizer.lsq.Lsq",
        "slimexp.quantizer.minmax.MinMax",
        "slimexp.quantizer.mse.Mse",
        "slimexp.quantizer.pact.Pact",
        "slimexp.quantizer.percentile.Percentile",
        "slimexp.quantizer.static.Static",
        "slimexp.quantizer.ternary.Ternary",
        "slimexp.quantizer.token.Token",
    }
)

_LEAVES_DENSE = "Finetune"  # the only technique that compresses nothing
WAY_OUT = "copy or train the model anew"
_ROW = {"module": str, "tensor": str, "class": str, "arguments": dict}


def read(folder: Path) -> dict[str, Any]:
    """Read and check the manifest in ``folder``.

    Returns:
        ``format``, ``family``, ``max_length``, ``stages`` (oldest first), ``attachments``, ``cache_bits`` and
        ``files``; other fields pass unchecked.

    Raises:
        ValueError: There is no manifest, it cannot be read, it is of a newer format, or a field breaks its rule.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        raise ValueError(f"'{folder}' is no slimexp artifact: {_why_none(folder)}")
    content = read_object(path, strict=True, way_out=WAY_OUT)
    try:
        _whole(content.get("format"), "format", least=1)
        if content["format"] > FORMAT:
            raise ValueError(
                f"'{folder}' is of format {content['format']}, this slimexp reads up to {FORMAT}: update slimexp"
            )
        content = {"cache_bits": None, **content}
        _check(content)
    except _Fault as fault:
        raise ValueError(f"'{path}' is damaged ({fault}): {WAY_OUT}") from fault
    return content


def _why_none(folder: Path) -> str:
    """Why a path without a manifest is no artifact, with the artifacts below it, as of a run or of a folder of runs."""
    if not os.path.lexists(folder):
        return "there is no such folder"
    if not folder.is_dir():
        return "it is a file; an artifact is the folder that a stage leaves, RUNS/NAME/STAGE-KEY/artifact"
    below = [path for depth in range(1, _BELOW + 1) for path in sorted(folder.glob(f"{'*/' * depth}{NAME}"))]
    newest = [str(path.parent) for path in sorted(below, key=lambda path: path.stat().st_mtime, reverse=True)]
    return f"it holds no {NAME}" + (f"; artifacts below it: {len(newest)}, the newest {newest[0]}" if newest else "")


def is_in(folder: Path) -> bool:
    """Whether ``folder`` is an artifact, whole or damaged."""
    return os.path.lexists(folder / NAME)


def goes_on(folder: Path) -> bool:
    """Whether training can go on from the artifact in ``folder``: its state was not dropped."""
    return os.path.lexists(folder / TRAINING) or not os.path.lexists(folder / DROPPED)


def dropped(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that were removed from an artifact on purpose."""
    if goes_on(folder):
        return {}
    return {TRAINING: read(folder)["digests"][TRAINING]["sha256"]}


def check(folder: Path, *, key: str | None = None) -> None:
    """Compare an artifact with its manifest; one of an older slimexp, which has no digests, as far as can be.

    Args:
        folder: The artifact.
        key: Key of the stage whose artifact it must be; ``None`` for any.

    Raises:
        Damaged: A file is missing, cut short or of other content, or it is the artifact of another stage.
    """
    if not folder.is_dir():
        raise Damaged("it is no folder")
    if not os.path.lexists(folder / NAME):
        raise Damaged(f"{NAME} is missing")
    content = read_object(folder / NAME, most_mb=OWN_MB, strict=True, way_out=None)
    if missing := [name for name in ("format", "family", "max_length", "stages", "attachments") if name not in content]:
        raise Damaged(f"{NAME} lacks {', '.join(missing)}")
    if content.keys() & {integrity.SEAL, "digests"}:
        integrity.check_seal(content)
    try:
        with working(f"checking the files of {folder}"):
            gone = set() if goes_on(folder) else {TRAINING}
            digests = content.get("digests", {})
            integrity.check_files(folder, {name: file for name, file in digests.items() if name not in gone})
        stages = content["stages"]
        stored_key = content["key"] if "key" in content else stages[-1].get("key", key) if stages else key
    except (AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{NAME} is of another form") from error
    if key is not None and stored_key != key:
        raise Damaged(f"it is of another stage, {stored_key}")


def compressing(stages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of a manifest's stages that made the model smaller."""
    return [stage for stage in stages if stage.get("technique") != _LEAVES_DENSE]


class _Fault(Exception):
    """A field that breaks its rule; the message has its name, the rule and the value."""

    def __init__(self, field: str, rule: str, value: Any) -> None:
        shown = repr(value)
        super().__init__(f"{field} must be {rule}, got {shown if len(shown) <= 80 else shown[:80] + ' ...'}")


def _check(content: Mapping[str, Any]) -> None:
    if content.get("family") not in FAMILIES:
        raise _Fault("family", f"one of {', '.join(FAMILIES)}", content.get("family"))
    _whole(content.get("max_length"), "max_length", least=2)
    if content["cache_bits"] not in CACHE_BITS or type(content["cache_bits"]) in (bool, float):
        raise _Fault("cache_bits", "null, 4 or 8", content["cache_bits"])
    for number, stage in enumerate(_objects(content, "stages")):
        _check_stage(stage, f"stages[{number}]")
    for number, row in enumerate(_objects(content, "attachments")):
        _check_attachment(row, f"attachments[{number}]")
    for number, name in enumerate(_list(content, "files")):
        if not is_plain(name):
            raise _Fault(f"files[{number}]", "the name of a file in the folder", name)


def is_plain(name: Any) -> bool:
    """Whether ``name`` is the name of a file in the folder itself."""
    return isinstance(name, str) and name.isprintable() and name not in ("", ".", "..") and not {"/", "\\"} & set(name)


def _check_stage(stage: Mapping[str, Any], where: str) -> None:
    for field in ("name", "technique", "key"):
        value = stage.get(field, "" if field == "name" else "-")
        if not isinstance(value, str) or not value or not value.isprintable():
            raise _Fault(f"{where}.{field}", "a word", value)
    coverage = stage.get("coverage", {})
    if not isinstance(coverage, dict):
        raise _Fault(f"{where}.coverage", "numbers by name", coverage)
    for name, figure in coverage.items():
        if not name.isprintable() or not is_of_type("float", figure) or not abs(figure) <= 1e300:
            raise _Fault(f"{where}.coverage.{name}", "a finite number", figure)


def _check_attachment(row: dict[str, Any], where: str) -> None:
    """Check an attachment; the name of its class becomes the present one."""
    for field, kind in _ROW.items():
        if not isinstance(row.get(field), kind):
            raise _Fault(f"{where}.{field}", {str: "a text", dict: "an object"}[kind], row.get(field))
    row["class"] = renamed.class_path(row["class"])
    if row["class"] not in ATTACHMENTS:
        raise _Fault(f"{where}.class", "an attachment that slimexp ships", row["class"])
    parameters = signature(row["class"]).parameters
    for name, value in row["arguments"].items():
        if name not in parameters:
            raise _Fault(f"{where}.arguments", f"of {', '.join(parameters)}", name)
        _check_argument(parameters[name], value, f"{where}.arguments.{name}")
    for name, parameter in parameters.items():
        if parameter.required and name not in row["arguments"]:
            raise _Fault(f"{where}.arguments", f"given with '{name}'", row["arguments"])


def _check_argument(parameter: Parameter, value: Any, where: str) -> None:
    annotation = parameter.annotation or ""
    for kind in annotation.split(" | "):
        inner = kind.removeprefix("Sequence[").removesuffix("]")
        if inner != kind and isinstance(value, list) and 0 < len(value) <= 8:
            for number, item in enumerate(value):
                _whole(item, f"{where}[{number}]", least=1)
            return
        if value is None and kind == "None":
            return
        if is_of_type(kind, value) and (isinstance(value, (bool, str)) or abs(value) <= LARGEST):
            return
    raise _Fault(where, annotation, value)


def _whole(value: Any, where: str, *, least: int) -> None:
    if not is_of_type("int", value) or not least <= value <= LARGEST:
        raise _Fault(where, f"a whole number from {least} to {LARGEST}", value)


def _list(content: Mapping[str, Any], field: str) -> list[Any]:
    value = content.get(field)
    if not isinstance(value, list):
        raise _Fault(field, "a list", value)
    return value


def _objects(content: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    rows = _list(content, field)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise _Fault(f"{field}[{number}]", "an object", row)
    return rows
