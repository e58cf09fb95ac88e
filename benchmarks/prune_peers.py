"""How good is one-shot pruning beside llm-compressor's, with the same calibration?

    sh benchmarks/peers/setup.sh            # once: an environment for each peer
    python -m benchmarks.prune_peers

The shipped Llama loses half of the weights of its blocks, unstructured and 2:4. Both sides read the same 128 training
rows, token by token, and are graded by slimexp on the same rows of the test split. Weights compete as the
papers have it: Wanda's by output row, SparseGPT's by strips of 128 columns, magnitudes by layer. Prints Markdown; exits
with status 1 where a peer's perplexity is lower by more than ``--slack``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slimexp.config import build, compose
from slimexp.data.base import Corpus
from slimexp.model.base import Family
from slimexp.model.loading import without_bars
from slimexp.technique.batches import calibration_batches

PEERS = Path(__file__).parent / "peers"
PEER = "llm_compressor"
ROWS, SPARSITY = 128, 0.5
IMPORTANCES = {"magnitude": "layer", "wanda": "row", "sparsegpt": "layer"}  # -> scope where unstructured
STRUCTURES = {"unstructured": "0:0", "2:4": "2:4"}  # pattern -> llm-compressor's word for it


class Row(NamedTuple):
    """One model.

    Attributes:
        perplexity: Per token of the test split.
        zeros: Share in the compressible layers.
        seconds: Of pruning; a peer's with its imports.
    """

    perplexity: float
    zeros: float
    seconds: float


def loaded(corpus: Corpus) -> Family:
    """The shipped Llama."""
    source = build(compose(["model=llama_python_source"]).model)
    family: Family = source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
    return family


def graded(family: Family, corpus: Corpus, rows: int, seconds: float) -> Row:
    """``family`` on the first ``rows`` of the test split."""
    examples = corpus.splits["test"][:rows]
    family.model.eval()
    predictions = family.predict([(one.source, one.target, one.label) for one in examples], batch_size=16)
    weights = [layer.weight.detach() for layer in family.compressible().values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    return Row(corpus.grade(predictions, examples)["perplexity"], zeros, seconds)


def ours(importance: str, pattern: str, family: Family, corpus: Corpus) -> float:
    """Prune ``family``; seconds."""
    by = f"importance@pipeline.prune.importance={importance}"
    scope = f"pipeline.prune.pattern.scope={IMPORTANCES[importance]}"
    where = scope if pattern == "unstructured" else "pattern@pipeline.prune.pattern=n_m"
    sizes = [f"pipeline.prune.sparsity={SPARSITY}", "pipeline.prune.steps=0"]
    if importance != "magnitude":
        sizes.append(f"pipeline.prune.importance.rows={ROWS}")
    technique = build(compose(["pipeline=prune", by, where, *sizes]).pipeline.prune)
    began = time.monotonic()
    technique.prepare(family, corpus, None)
    technique.finish()
    return time.monotonic() - began


def theirs(importance: str, pattern: str, family: Family, rows: list[list[int]], python: Path) -> float:
    """Have the peer prune the same model, and put its weights into ``family``; seconds.

    Raises:
        RuntimeError: It failed; with what it said last.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, into = Path(folder, "model"), Path(folder, "weights.pt")
        with without_bars():
            family.model.save_pretrained(model)
        family.tokenizer.save_pretrained(model)
        task: dict[str, Any] = {
            "model": str(model), "into": str(into), "rows": rows, "importance": importance,
            "structure": STRUCTURES[pattern], "sparsity": SPARSITY,
        }  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(
            [python, PEERS / f"{PEER}.py"], input=json.dumps(task), text=True, capture_output=True, cwd=folder
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        state: dict[str, Tensor] = torch.load(into, weights_only=True)
        family.model.load_state_dict(state)
    return seconds


def table(dense: Row, rows: dict[tuple[str, str], tuple[Row, Row | str]]) -> str:
    """Markdown."""
    lines = [
        "| pattern | importance | perplexity | zeros | seconds | llm-compressor: perplexity | zeros | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| dense | | {dense.perplexity:.3f} | {dense.zeros:.1%} | | | | |",
    ]
    for (pattern, importance), (own, peer) in rows.items():
        sides = [f"{r.perplexity:.3f} | {r.zeros:.1%} | {r.seconds:.0f}" for r in (own, peer) if isinstance(r, Row)]
        sides += [f"failed: {peer} | |"] if isinstance(peer, str) else []
        lines.append(f"| {pattern} | {importance} | {' | '.join(sides)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--importances", nargs="*", choices=IMPORTANCES, default=list(IMPORTANCES))
    parser.add_argument("--patterns", nargs="*", choices=STRUCTURES, default=list(STRUCTURES))
    parser.add_argument("--rows", type=int, default=200, help="of the test split")
    parser.add_argument("--slack", type=float, default=0.005, help="share by which ours may be higher")
    parser.add_argument("--environments", type=Path, default=PEERS / ".venv", help="what setup.sh made")
    arguments = parser.parse_args()
    python = arguments.environments / PEER / "bin" / "python"
    if not python.exists():
        sys.exit(f"no {python}: run sh benchmarks/peers/setup.sh")
    corpus: Corpus = build(compose(["data=python_source"]).data)
    family = loaded(corpus)
    calibration = calibration_batches(corpus, family, rows=ROWS, seed=0)
    tokens = [batch["input_ids"][0].tolist() for batch in calibration]
    dense = graded(family, corpus, arguments.rows, 0.0)
    rows: dict[tuple[str, str], tuple[Row, Row | str]] = {}
    for pattern in arguments.patterns:
        for importance in arguments.importances:
            family = loaded(corpus)
            try:
                seconds = theirs(importance, pattern, family, tokens, python)
                peer: Row | str = graded(family, corpus, arguments.rows, seconds)
            except RuntimeError as error:
                peer = str(error)
            family = loaded(corpus)
            own = graded(family, corpus, arguments.rows, ours(importance, pattern, family, corpus))
            rows[pattern, importance] = own, peer
            print(f"{pattern}, {importance}: {own}, {peer}", flush=True)
    print(f"\n{table(dense, rows)}")
    worse = [key for key, (own, peer) in rows.items() if isinstance(peer, Row) and higher(own, peer, arguments.slack)]
    if worse:
        sys.exit(f"worse than llm-compressor: {', '.join(' '.join(key) for key in worse)}")


def higher(own: Row, peer: Row, slack: float) -> bool:
    """Whether ours is worse than a peer that pruned as much."""
    return peer.zeros >= own.zeros - 0.01 and own.perplexity > peer.perplexity * (1 + slack)


if __name__ == "__main__":
    main()
