"""How good are models rounded to integers beside torchao's and llm-compressor's, at equal bits?

    sh benchmarks/peers/setup.sh            # once: an environment for each peer
    python -m benchmarks.quantize_peers

The shipped Llama and T5 are rounded to int8 and int4 without training: to nearest, by GPTQ and by AWQ, with equally
many scales (one per output channel at 8 bits, one per ``GROUP`` neighbours at 4). Both sides leave embeddings and heads
as they are and read the same ``CALIBRATION`` training rows, token by token. All are graded by slimexp on the same rows
of the test split: slimexp's folder and llm-compressor's as plain transformers loads them, torchao's model as it
computes. torchao's int4 is its ``IntxWeightOnlyConfig``, as ``Int4WeightOnlyConfig`` has no layout for a CPU; it stores
a byte per weight. llm-compressor's AWQ runs on a GPU alone.

Worse is slimexp's figure less the peer's, on the same rows, with the standard error of that difference (a jackknife
over ``BLOCKS`` stretches of the test rows). MB: of the tensors saved.

Prints Markdown, writes ``RUNS/quantize_peers.json``; exits with status 1 where slimexp is worse than a peer by more
than ``--errors`` standard errors.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.prune_peers import PEERS, loaded, reason
from slimexp import artifact
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus, Example
from slimexp.measure.base import spread
from slimexp.model.base import Family
from slimexp.model.loading import from_folder
from slimexp.model.reading import without_bars
from slimexp.record.environment import environment
from slimexp.technique.batches import calibration_batches

LLM_COMPRESSOR, TORCHAO = "llm_compressor", "torchao"
GROUP, CALIBRATION, BLOCKS = 64, 128, 20
METRICS = {"causal_lm": "perplexity", "seq2seq": "cer"}
MODELS = {"llama_python_source": "python_source", "t5_spelling": "spelling"}  # -> corpus
Q = "pipeline.quantize"
NEAREST, GPTQ, AWQ = "to nearest", "GPTQ", "AWQ"


class Width(NamedTuple):
    """How weights and activations are stored.

    Attributes:
        bits: Of a weight.
        group: Neighbours that share a scale; ``None``: an output channel.
        activation_bits: 8, or ``None`` for float.
        symmetric: Whether there are no zero points.
    """

    bits: int
    group: int | None
    activation_bits: int | None
    symmetric: bool = True


WIDTHS = {
    "int8, activations int8": Width(8, None, 8),
    "int8": Width(8, None, None),
    "int4": Width(4, GROUP, None),
    "int4, zero points": Width(4, GROUP, None, symmetric=False),
}
METHODS: dict[str, tuple[str, ...]] = {
    NEAREST: (),
    GPTQ: (f"+rounding@{Q}.rounding=gptq", f"{Q}.rounding.rows={CALIBRATION}"),
    AWQ: (f"+smoothing@{Q}.smoothing=awq", f"{Q}.smoothing.rows={CALIBRATION}"),
}
PAIRS = (  # width, method, peer and, of torchao, its recipe
    ("int8, activations int8", NEAREST, TORCHAO, "int8_dynamic"),
    ("int8, activations int8", GPTQ, LLM_COMPRESSOR, ""),
    ("int8", NEAREST, TORCHAO, "int8_weight_only"),
    ("int4", NEAREST, TORCHAO, "int4_symmetric"),
    ("int4", NEAREST, LLM_COMPRESSOR, ""),
    ("int4", GPTQ, LLM_COMPRESSOR, ""),
    ("int4", AWQ, LLM_COMPRESSOR, ""),
    ("int4, zero points", NEAREST, TORCHAO, "int4_asymmetric"),
)


class Made(NamedTuple):
    """A rounded model.

    Attributes:
        predictions: Of the test rows, as ``Corpus.grade`` reads them.
        mb: Of its tensors on disk, 10^6 bytes.
        seconds: Of rounding; a peer's with its imports.
    """

    predictions: list[Any]
    mb: float
    seconds: float


class Bench(NamedTuple):
    """A shipped model and what it is graded on.

    Attributes:
        name: Of the model.
        corpus: Its text.
        dense: It.
        folder: It, in the hub's format.
        examples: Rows of the test split.
    """

    name: str
    corpus: Corpus
    dense: Family
    folder: Path
    examples: list[Example]

    @property
    def texts(self) -> list[tuple[Any, ...]]:
        return [(one.source, one.target, one.label) for one in self.examples]

    @property
    def metric(self) -> str:
        return METRICS[self.corpus.task]

    def grade(self, predictions: Sequence[Any], rows: Sequence[int] | None = None) -> float:
        """The metric, of all rows or of some."""
        rows = range(len(self.examples)) if rows is None else rows
        return self.corpus.grade([predictions[i] for i in rows], [self.examples[i] for i in rows])[self.metric]

    def worse(self, own: Sequence[Any], peer: Sequence[Any]) -> tuple[float, float]:
        """By how much ``own`` exceeds ``peer``, and the standard error of that: a jackknife over stretches of rows."""
        count = len(self.examples)
        parts = min(BLOCKS, count)
        differences = []
        for k in range(parts):
            rows = [i for i in range(count) if not k * count // parts <= i < (k + 1) * count // parts]
            differences.append(self.grade(own, rows) - self.grade(peer, rows))
        mean = sum(differences) / parts
        error = math.sqrt((parts - 1) / parts * sum((one - mean) ** 2 for one in differences))
        return self.grade(own) - self.grade(peer), error


class Line(NamedTuple):
    """slimexp beside a peer.

    Attributes:
        model: That was rounded.
        width: Of ``WIDTHS``.
        method: Of ``METHODS``.
        peer: Who else did it.
        own: slimexp's figure.
        own_mb: And size.
        other: The peer's figure, or why there is none.
        other_mb: And size.
        worse: slimexp's figure less the peer's.
        error: Its standard error.
        seconds: Of both.
    """

    model: str
    width: str
    method: str
    peer: str
    own: float
    own_mb: float
    other: float | str
    other_mb: float = 0.0
    worse: float = 0.0
    error: float = 0.0
    seconds: tuple[float, float] = (0.0, 0.0)


def by_slimexp(bench: Bench, width: Width, method: str) -> Made:
    """slimexp rounds the model; predictions are those of the saved folder as plain transformers loads it."""
    settings = {
        "steps": 0,
        "bits": width.bits,
        "group_size": width.group,
        "activation_bits": width.activation_bits,
        "symmetric": str(width.symmetric).lower(),
    }
    lines = [f"{Q}.{key}={'null' if value is None else value}" for key, value in settings.items()]
    technique = build(compose(["pipeline=quantize", *lines, *METHODS[method]]).pipeline.quantize)
    family = loaded(bench.corpus, bench.name)
    began = time.monotonic()
    technique.prepare(family, bench.corpus, None)
    technique.finish()
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(family, Path(folder, "model"), dtype=torch.bfloat16, stages=[])
        return _read(bench, Path(folder, "model"), seconds)


def _read(bench: Bench, folder: Path, seconds: float) -> Made:
    """What plain transformers makes of a folder."""
    family = from_folder(folder, bench.dense.task, bench.dense.max_length)
    return Made(family.predict(bench.texts, batch_size=16), _megabytes(folder), seconds)


def _dequantize_at_load(folder: Path) -> None:
    """Without it, transformers looks for a T5's weights while they are packed, and finds none."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["dequantize"] = True
    path.write_text(json.dumps(config))


def _megabytes(folder: Path) -> float:
    """Of all tensors."""
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors")) / 1e6


def by_peer(bench: Bench, width: Width, method: str, peer: str, recipe: str, environments: Path) -> Made:
    """A peer rounds the model.

    Raises:
        RuntimeError: It failed; with what it said last.
    """
    common = {"model": str(bench.folder), "task": bench.dense.task}
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "made")
        if peer == TORCHAO:
            own = {"recipe": recipe, "group": GROUP, "max_length": bench.dense.max_length, "texts": bench.texts}
            seconds = _run_peer(environments / peer, "torchao", {**common, **own, "into": str(into)})
            made = json.loads(into.read_text())
            return Made(
                [tuple(one) if isinstance(one, list) else one for one in made["predictions"]], made["mb"], seconds
            )
        own = {"method": method, **width._asdict(), "rows": calibration(bench)}
        seconds = _run_peer(environments / peer, "llm_compressor_quantize", {**common, **own, "into": str(into)})
        bench.dense.tokenizer.save_pretrained(into)
        if width.activation_bits is None:
            _dequantize_at_load(into)
        return _read(bench, into, seconds)


def _run_peer(environment: Path, script: str, task: dict[str, Any]) -> float:
    """Run a peer's script; seconds."""
    began = time.monotonic()
    done = subprocess.run(
        # -P: a script named like the package it imports must not find itself
        [environment / "bin" / "python", "-P", PEERS / f"{script}.py"],
        input=json.dumps(task),
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise RuntimeError(reason(done.stderr))
    return time.monotonic() - began


def calibration(bench: Bench) -> list[dict[str, list[int]]]:
    """The rows that slimexp reads, as tokens."""
    batches = calibration_batches(bench.corpus, bench.dense, rows=CALIBRATION, seed=0)
    names = ["input_ids", "attention_mask", *(["labels"] if bench.corpus.task == "seq2seq" else [])]
    return [{name: batch[name][0].tolist() for name in names} for batch in batches]


def compared(bench: Bench, pairs: Sequence[tuple[str, str, str, str]], environments: Path) -> list[Line]:
    """Every pair of one model."""
    made: dict[tuple[str, str], Made] = {}
    lines = []
    for width, method, peer, recipe in pairs:
        if (width, method) not in made:
            made[width, method] = by_slimexp(bench, WIDTHS[width], method)
        own = made[width, method]
        head = (bench.name, width, method, peer, bench.grade(own.predictions), own.mb)
        try:
            other = by_peer(bench, WIDTHS[width], method, peer, recipe, environments)
            figures = bench.grade(other.predictions), other.mb, *bench.worse(own.predictions, other.predictions)
            line = Line(*head, *figures, (own.seconds, other.seconds))
        except RuntimeError as error:
            line = Line(*head, str(error))
        print(line, flush=True)
        lines.append(line)
    return lines


def table(metric: str, dense: float, lines: Sequence[Line]) -> str:
    """Markdown, of one model."""
    rows = [
        f"| weights | rounded | {metric} | MB | peer | {metric} | MB | worse |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
        f"| bfloat16 | | {dense:.4f} | | | | | |",
    ]
    for line in lines:
        own = f"| {line.width} | {line.method} | {line.own:.4f} | {line.own_mb:.2f} | {line.peer.replace('_', '-')} |"
        if isinstance(line.other, str):
            rows.append(f"{own} failed: {line.other} | | |")
        else:
            rows.append(f"{own} {line.other:.4f} | {line.other_mb:.2f} | {line.worse:+.4f} ± {line.error:.4f} |")
    return "\n".join(rows)


def beaten(lines: Sequence[Line], errors: float) -> list[str]:
    """Where slimexp is worse than a peer by more than chance."""
    return [
        f"{line.model}, {line.width}, {line.method}, {line.peer}"
        for line in lines
        if isinstance(line.other, float) and line.worse > errors * line.error
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--peers", nargs="+", choices=(TORCHAO, LLM_COMPRESSOR), default=[TORCHAO, LLM_COMPRESSOR])
    parser.add_argument("--rows", type=int, default=300, help="of the test split")
    parser.add_argument("--errors", type=float, default=2.0, help="standard errors by which slimexp may be worse")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--environments", type=Path, default=PEERS / ".venv", help="what setup.sh made")
    arguments = parser.parse_args()
    for peer in arguments.peers:
        if not (arguments.environments / peer / "bin" / "python").exists():
            sys.exit(f"no {arguments.environments / peer}: run sh benchmarks/peers/setup.sh")
    pairs = [pair for pair in PAIRS if pair[1] in arguments.methods and pair[2] in arguments.peers]
    lines: list[Line] = []
    for name in arguments.models:
        corpus: Corpus = build(compose([f"data={MODELS[name]}"]).data)
        test = corpus.splits["test"]
        with tempfile.TemporaryDirectory() as folder, without_bars():
            dense = loaded(corpus, name)
            dense.model.save_pretrained(folder)
            dense.tokenizer.save_pretrained(folder)
            bench = Bench(name, corpus, dense, Path(folder), [test[i] for i in spread(len(test), arguments.rows, 0)])
            model_lines = compared(bench, pairs, arguments.environments.absolute())
            whole = bench.grade(dense.predict(bench.texts, batch_size=16))
        print(f"\n{name}:\n\n{table(bench.metric, whole, model_lines)}\n", flush=True)
        lines += model_lines
    path = arguments.runs / "quantize_peers.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    outcome = {"rows": arguments.rows, "lines": [line._asdict() for line in lines], **environment()}
    path.write_text(json.dumps(outcome, indent=2) + "\n")
    print(f"-> {path}")
    if worse := beaten(lines, arguments.errors):
        sys.exit(f"worse than a peer: {'; '.join(worse)}")


if __name__ == "__main__":
    main()
