"""Random documents for everything that reads a file which others may have written.

A reader gives a value, or refuses by ``ValueError`` or ``OSError``, in good time; whatever else it raises is a bug.
"""

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from benchmarks.faults.damage import ESCAPE, SCRIPT, leaves, put

REFUSALS = (ValueError, OSError)
DEADLINE_S = 5.0  # of one document
FIXED = 100  # documents of a reader that the tests read, always the same


@dataclass(frozen=True)
class Reader:
    """A reader and a document that it takes.

    Attributes:
        file: Name of the file that it reads.
        valid: JSON documents that it takes, a line each in a ``.jsonl``; text for a file that is no JSON.
        read: Folder of the file -> whatever it makes of it.
    """

    file: str
    valid: Any
    read: Callable[[Path], object]

    def write(self, folder: Path, content: bytes) -> None:
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _manifest(folder: Path) -> object:
    from slimexp import artifact

    return artifact.read_manifest(folder)


def _reached(folder: Path) -> object:
    from slimexp import artifact

    return artifact.reached(folder)


def _record(folder: Path) -> object:
    from slimexp.record.record import Record

    return Record.from_json((folder / "records.jsonl").read_bytes())


def _records(folder: Path) -> object:
    from slimexp.record import record

    return record.read(folder)


def _sections(folder: Path) -> object:
    from slimexp.analysis.section import load

    return load(folder)


def _config(folder: Path) -> object:
    from slimexp.model.loading import Pretrained

    return Pretrained(path=str(folder), max_length=16).validate("causal_lm")


def _journal(folder: Path) -> object:
    from optuna.study import StudyDirection

    from slimexp.sweeper.repair import Expected
    from slimexp.sweeper.storage import open_storage

    ways = {"cer": StudyDirection.MINIMIZE, "disk_mb": StudyDirection.MINIMIZE}
    sweep = Expected(study="swept/s/sweep", described="sweep", objectives=ways, mark="outcome")
    storage = open_storage(None, folder, sweep)
    return [storage.get_all_trials(study._study_id) for study in storage.get_all_studies()]


def _published(folder: Path) -> object:
    from slimexp.analysis import published

    return published.read(folder / "published.csv", ["files"])


def _published_lines(folder: Path) -> object:
    from slimexp.analysis import published

    return published.read(folder / "published.jsonl", ["files"])


def _measured(folder: Path) -> object:
    from slimexp.record.stage import Stage

    return Stage("prune", "0" * 12, None, folder).measured()


def _log(folder: Path) -> object:
    from slimexp.logger import wandb_log

    return wandb_log.read(folder / "run-x.wandb")


MANIFEST = {
    "format": 1, "family": "causal_lm", "max_length": 16, "cache_bits": None, "files": ["config.json"],
    "stages": [{"name": "prune", "technique": "Prune", "key": "f1b3046354fc", "coverage": {"share": 0.6,
    "sparsity": 0.5}}],
    "attachments": [{"module": "model.layers.0.mlp.up_proj", "tensor": "weight",
    "class": "slimexp.weight.mask.Mask",
                     "arguments": {"shape": [48, 32]}}],
}  # fmt: skip
RECORD = {
    "time": "2026-01-01T00:00:00+00:00", "name": "run", "stage": "prune", "key": "a", "parent": None,
    "technique": "Prune",
    "seed": 0, "overrides": ["seed=0"], "git": None, "versions": {"torch": "2"}, "hardware": {"cpu": "x", "gpu": []},
    "config": {"seed": 0, "data": {"_target_": "slimexp.data.files.Files"}, "pipeline": {"prune": {"sparsity": 0.5}}},
    "kernel": "float32 matmul", "headline": "cer", "direction": "min", "metrics": {"cer": 0.02, "disk_mb": 1.0},
    "directions": {"cer": "min", "disk_mb": "min"}, "baseline": {"cer": 0.015, "disk_mb": 2.0}, "baseline_key": "dense",
    "trivial": 0.077, "seconds": {"train": 1.0}, "reused": False, "artifact": "run/prune-a/artifact", "curves": None,
    "schema": 1,
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "vocab_size": 260, "pad_token_id": 0, "eos_token_id": 1, "dtype": "float32", "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": True,
}  # fmt: skip
WHO = {"worker_id": "w-1"}
CHOICES = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": ["0.5", "0.9"]}})
JOURNAL = [
    {"op_code": 0, **WHO, "study_name": "swept/s/sweep", "directions": [1, 1]},
    {"op_code": 2, **WHO, "study_id": 0, "user_attr": {"sweep": {"seeds": []}}},
    {"op_code": 4, **WHO, "study_id": 0, "datetime_start": "2026-01-01T00:00:00.000000+00:00"},
    {"op_code": 5, **WHO, "trial_id": 0, "param_name": "x", "param_value_internal": 0, "distribution": CHOICES},
    {"op_code": 8, **WHO, "trial_id": 0, "user_attr": {"outcome": {"metrics": {"cer": 0.1}}}},
    {"op_code": 6, **WHO, "trial_id": 0, "state": 1, "values": [0.1, 2.0],
     "datetime_complete": "2026-01-01T00:00:01.000000+00:00"},
]  # fmt: skip
POINT = {"label": "others", "disk_mb": 0.1, "cer": 0.02, "corpus": "files"}

# Everything that is read from a disk; the one place to change where a reader gets another name.
READERS: dict[str, Reader] = {
    "manifest": Reader("manifest.json", [MANIFEST], _manifest),
    "figures of a manifest": Reader("manifest.json", [MANIFEST], _reached),
    "record": Reader("records.jsonl", [RECORD], _record),
    "records": Reader("records.jsonl", [RECORD, RECORD | {"key": "dense", "stage": "dense"}], _records),
    "sections of a report": Reader("records.jsonl", [RECORD, RECORD | {"key": "dense", "stage": "dense"}], _sections),
    "config": Reader("config.json", [CONFIG], _config),
    "journal": Reader("journal.jsonl", JOURNAL, _journal),
    "published, csv": Reader("published.csv", "label,disk_mb,cer\nothers,0.1,0.02\n", _published),
    "published, jsonl": Reader("published.jsonl", [POINT, POINT], _published_lines),
    "measures": Reader("measures.json", [{"measure": {}, "code": "x", "metrics": {"cer": 0.1}}], _measured),
    "log of W&B": Reader("run-x.wandb", ":W&B\x00\x00\x00" + "\x00" * 40, _log),
}

TEXTS = (
    st.sampled_from(["", "x", "../../victim", ESCAPE, SCRIPT, "$\\frac{$", "\0", "/dev/null", "NaN", "a" * 2000])
    | st.text()
)
NUMBERS = st.sampled_from([0, -1, 1, 2**63, 10**400, -(10**30), 1e308, 0.5]) | st.integers() | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: Callable[[SearchStrategy[Any]], Any], reader: Reader) -> bytes:
    """A valid document of ``reader`` in which values were replaced or taken out."""
    documents = copy.deepcopy(reader.valid)
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(documents) - 1))
        places = list(leaves(documents[number]))
        if not places:
            break
        place = draw(st.sampled_from(places))
        documents[number] = put(documents[number], place, draw(VALUES | st.just(...)))
    return _text(documents).encode(errors="surrogatepass")


@st.composite
def torn(draw: Callable[[SearchStrategy[Any]], Any], reader: Reader) -> bytes:
    """A valid document of ``reader`` in which bytes were changed, put in or taken out."""
    content = reader.valid if isinstance(reader.valid, str) else _text(reader.valid)
    data = bytearray(content.encode("latin-1" if reader.file.endswith("wandb") else "utf-8"))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 20))] = draw(st.binary(max_size=8))
    return bytes(data)


def documents(reader: Reader) -> SearchStrategy[bytes]:
    """What ``reader`` is given: near a valid document, or nothing like one."""
    near = torn(reader) if isinstance(reader.valid, str) else changed(reader) | torn(reader)
    return near | near | st.binary(max_size=200)


def refuses_or_reads(reader: Reader, content: bytes, folder: Path) -> None:
    """Let ``reader`` read.

    Raises:
        Exception: What is neither a value nor a refusal.
        AssertionError: It took too long.
    """
    reader.write(folder, content)
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(*REFUSALS):
            reader.read(folder)
    assert time.monotonic() - began < DEADLINE_S, f"took {time.monotonic() - began:.1f} s"


def hold(reader: Reader, folder: Path, *, examples: int, number: int | None = None) -> int:
    """Let ``reader`` read ``examples`` documents; returns how many it read.

    Args:
        reader: The reader.
        folder: Where the documents go.
        examples: How many.
        number: Of the random choices; ``None`` for the same documents at every call.
    """
    count = 0

    def one(content: bytes) -> None:
        nonlocal count
        count += 1
        refuses_or_reads(reader, content, folder)

    test = given(documents(reader))(one)
    test = seed(number)(test) if number is not None else test
    settings(
        max_examples=examples,
        derandomize=number is None,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(test)()
    return count


def run(*, minutes: float) -> dict[str, dict[str, Any]]:
    """Every reader in turn for its share of ``minutes``; returns documents read and the first error of each."""
    results: dict[str, dict[str, Any]] = {}
    for name, reader in READERS.items():
        until, found = time.monotonic() + 60 * minutes / len(READERS), {"examples": 0, "error": ""}
        with tempfile.TemporaryDirectory() as folder:
            turn = int(time.time())
            while time.monotonic() < until and not found["error"]:
                turn += 1
                try:
                    found["examples"] += hold(reader, Path(folder), examples=200, number=turn)
                except Exception as error:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    found["error"] = f"{reason} (seed {turn})"
        results[name] = found
        print(f"{name:24s} {found['examples']:8d} documents  {found['error'] or 'read or refused'}", flush=True)
    return results


def _text(documents: list[Any]) -> str:
    return "\n".join(map(json.dumps, documents)) + "\n"
