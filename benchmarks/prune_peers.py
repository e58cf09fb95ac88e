"""How good is one-shot pruning beside llm-compressor's, torch-pruning's and Model-Optimizer's?

    sh benchmarks/peers/setup.sh            # once: an environment for each peer
    python -m benchmarks.prune_peers

The shipped Llama loses half of the weights of its blocks, unstructured and 2:4. Both sides read the same 128 training
rows, token by token, and are graded by slimexp on the same rows of the test split. Weights compete as the
papers have it: Wanda's by output row, SparseGPT's by strips of 128 columns, magnitudes by layer.

Structured: the shipped Llama and BERT keep ``--share`` of their parameters, by magnitude and without training, from the
same axes as torch-pruning where transformers can load the result; beside it slimexp's own choice, by activations and
from all axes. torch-pruning is stopped after ``--seconds``. Model-Optimizer's FastNAS takes unlike numbers of neurons
from the Llama's blocks, chosen by their loss on ``--scored`` training rows; beside it slimexp's, chosen so too.

Prints Markdown; exits with status 1 where a peer's quality is better by more than ``--slack``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from slimexp.architecture.base import FFN
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus
from slimexp.model.base import Family
from slimexp.model.reading import without_bars
from slimexp.model.widths import from_config, set_widths
from slimexp.technique.batches import calibration_batches

PEERS = Path(__file__).parent / "peers"
LLM_COMPRESSOR, TORCH_PRUNING, MODELOPT = "llm_compressor", "torch_pruning", "modelopt"
PEER_ROW, FASTNAS_ROW = "torch-pruning, magnitude", "Model-Optimizer, FastNAS"
OWN_ROW = "slimexp, magnitude"
UNLIKE = "ffn, unlike"  # axes of FastNAS, and of slimexp's row beside it
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


class Axes(NamedTuple):
    """What a shipped model may lose.

    Attributes:
        corpus: It is graded on.
        own: All that slimexp cuts.
        peer: What torch-pruning is asked for, one passage each.
        fastnas: Whether Model-Optimizer's FastNAS is asked too.
    """

    corpus: str
    own: str
    peer: tuple[str, ...]
    fastnas: bool = False


# The Llama keeps torch-pruning until it is stopped, whatever is asked for: once is enough. Transformers has no BERT
# whose heads are fewer and as wide, so that slimexp leaves them alone; torch-pruning's model needs its own pickle.
MODELS = {
    "llama_python_source": Axes("python_source", "layers, heads, ffn, hidden", ("heads, ffn",), fastnas=True),
    "bert_docstring_topic": Axes("docstring_topic", "layers, ffn", ("ffn", "heads, ffn", "heads, ffn, hidden")),
}
Cuts = dict[tuple[str, str], "Cut | str"]  # axes, who -> model, or why there is none


class Cut(NamedTuple):
    """One model that lost structure.

    Attributes:
        quality: The corpus's headline on the test split.
        parameters: Share that is left.
        seconds: Of pruning; a peer's with its imports.
    """

    quality: float
    parameters: float
    seconds: float


def loaded(corpus: Corpus, model: str = "llama_python_source") -> Family:
    """A model that ships with slimexp."""
    source = build(compose([f"model={model}"]).model)
    family: Family = source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
    return family


def graded(family: Family, corpus: Corpus, rows: int, seconds: float) -> Row:
    """``family`` on the first ``rows`` of the test split."""
    perplexity = grades(family, corpus, rows)["perplexity"]
    weights = [layer.weight.detach() for layer in family.compressible().values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    return Row(perplexity, zeros, seconds)


def grades(family: Family, corpus: Corpus, rows: int | None) -> dict[str, float]:
    """Of the first ``rows`` of the test split, or of all."""
    examples = corpus.splits["test"][:rows]
    family.model.eval()
    predictions = family.predict([(one.source, one.target, one.label) for one in examples], batch_size=16)
    return corpus.grade(predictions, examples)


def by_slimexp(importance: str, pattern: str, family: Family, corpus: Corpus) -> float:
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


def run_peer(peer: str, task: dict[str, Any], family: Family, environments: Path, **trust: Any) -> tuple[Any, float]:
    """Have a peer prune the model of ``family``: what it saved, and seconds.

    Raises:
        RuntimeError: It failed; with the last line of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, into = Path(folder, "model"), Path(folder, "pruned.pt")
        with without_bars():
            family.model.save_pretrained(model)
        family.tokenizer.save_pretrained(model)
        began = time.monotonic()
        done = subprocess.run(
            # -P: a script named like the package it imports must not find itself
            [environments / peer / "bin" / "python", "-P", PEERS / f"{peer}.py"],
            input=json.dumps({**task, "model": str(model), "into": str(into)}),
            text=True,
            capture_output=True,
            cwd=folder,
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(reason(done.stderr))
        return torch.load(into, **trust), seconds


def reason(stderr: str) -> str:
    """Why a peer failed: its last line, or the innermost of its own lines where it was stopped."""
    lines = stderr.strip().splitlines()
    if not (stops := [number for number, line in enumerate(lines) if line.startswith("Timeout")]):
        return lines[-1]
    frames = [line for line in lines[stops[0] :] if "site-packages/torch_pruning" in line]
    where = frames[0].partition("site-packages/")[2].replace('"', "") if frames else "elsewhere"
    return f"{lines[stops[0]]} at {where}"


def by_peer(importance: str, pattern: str, family: Family, rows: list[list[int]], environments: Path) -> float:
    """llm-compressor prunes ``family``; seconds."""
    task = {"rows": rows, "importance": importance, "structure": STRUCTURES[pattern], "sparsity": SPARSITY}
    state, seconds = run_peer(LLM_COMPRESSOR, task, family, environments, weights_only=True)
    family.model.load_state_dict(state)
    return seconds


def measured(family: Family, corpus: Corpus, rows: int | None, whole: int, seconds: float) -> Cut:
    """``family``, of once ``whole`` parameters, on the first ``rows`` of the test split."""
    return Cut(grades(family, corpus, rows)[corpus.headline], parameters(family) / whole, seconds)


def parameters(family: Family) -> int:
    return sum(parameter.numel() for parameter in family.model.parameters())


def smaller(
    family: Family, corpus: Corpus, axes: str, importance: str, share: float, *more: str
) -> tuple[Family, float]:
    """``family`` with ``share`` of its parameters, and seconds; ``more`` are settings of the stage."""
    stage = "pipeline.prune_structured"
    lines = ["pipeline=prune_structured", f"{stage}.budget.share={share}", f"{stage}.steps=0", f"{stage}.axes=[{axes}]"]
    lines += [f"importance@{stage}.importance={importance}", *(f"{stage}.{one}" for one in more)]
    technique = build(compose(lines).pipeline.prune_structured)
    began = time.monotonic()
    technique.prepare(family, corpus, None)
    technique.finish()
    return technique.family, time.monotonic() - began


def structured(name: str, corpus: Corpus, arguments: argparse.Namespace) -> Cuts:
    """The model ``name`` with ``--share`` of its parameters."""
    dense, axes, share = loaded(corpus, name), MODELS[name], arguments.share
    rows = None if corpus.task == "classification" else arguments.rows  # its split is sorted by class, and short
    whole = parameters(dense)
    found: Cuts = {("", "dense"): measured(dense, corpus, rows, whole, 0.0)}
    for peer_axes in axes.peer:
        task = {"task": corpus.task, "share": share, "axes": peer_axes.split(", "), "seconds": arguments.seconds}
        try:
            model, seconds = run_peer(TORCH_PRUNING, task, dense, arguments.environments, weights_only=False)
            family = type(dense)(model, dense.tokenizer, max_length=dense.max_length)
            found[peer_axes, PEER_ROW] = measured(family, corpus, rows, whole, seconds)
        except RuntimeError as error:
            found[peer_axes, PEER_ROW] = str(error)
    both = [one for one in axes.peer if set(one.split(", ")) <= set(axes.own.split(", "))]
    for own, importance in [*((one, "magnitude") for one in both), (axes.own, "activation")]:
        family, seconds = smaller(loaded(corpus, name), corpus, own, importance, share)
        found[own, f"slimexp, {importance}"] = measured(family, corpus, rows, whole, seconds)
    if axes.fastnas:
        try:
            family, seconds = by_fastnas(dense, corpus, arguments)
            found[UNLIKE, FASTNAS_ROW] = measured(family, corpus, rows, whole, seconds)
        except RuntimeError as error:
            found[UNLIKE, FASTNAS_ROW] = str(error)
        more = ("uniform=false", f"rows={arguments.scored}")
        family, seconds = smaller(loaded(corpus, name), corpus, FFN, "magnitude", share, *more)
        found[UNLIKE, OWN_ROW] = measured(family, corpus, rows, whole, seconds)
    return found


def by_fastnas(dense: Family, corpus: Corpus, arguments: argparse.Namespace) -> tuple[Family, float]:
    """Model-Optimizer's FastNAS prunes the model of ``dense``, which stays as it is; and seconds."""
    batches = calibration_batches(corpus, dense, rows=arguments.scored, seed=0)
    task = {"share": arguments.share, "rows": [batch["input_ids"][0].tolist() for batch in batches]}
    state, seconds = run_peer(MODELOPT, task, dense, arguments.environments, weights_only=True)
    model = unlike_model(dense.model.config, state)
    return type(dense)(model, dense.tokenizer, max_length=dense.max_length), seconds


def unlike_model(config: PreTrainedConfig, state: dict[str, Tensor]) -> PreTrainedModel:
    """A Llama of ``state``, whose blocks may have unlike numbers of neurons; ``config`` is the dense model's."""
    config = deepcopy(config)
    blocks = range(config.num_hidden_layers)
    set_widths(config, FFN, {"decoder": [len(state[f"model.layers.{block}.mlp.up_proj.weight"]) for block in blocks]})
    model = from_config(AutoModelForCausalLM, config)
    model.load_state_dict(state)
    return model


def cuts_table(headline: str, cuts: Cuts) -> str:
    """Markdown."""
    lines = [f"| axes | who | {headline} | parameters | seconds |", "| --- | --- | ---: | ---: | ---: |"]
    for (axes, who), cut in cuts.items():
        if isinstance(cut, str):
            lines.append(f"| {axes} | {who} | failed: {cut} | | |")
        else:
            lines.append(f"| {axes} | {who} | {cut.quality:.3f} | {cut.parameters:.1%} | {cut.seconds:.0f} |")
    return "\n".join(lines)


def beaten(axes: Axes, cuts: Cuts, direction: str, slack: float) -> list[str]:
    """Where a peer is better than slimexp by the same axes and magnitudes, or as slimexp ships."""
    sign = -1 if direction == "min" else 1
    shipped = cuts[axes.own, "slimexp, activation"]
    pairs = {one: (cuts.get((one, OWN_ROW), shipped), cuts[one, PEER_ROW]) for one in axes.peer}
    if axes.fastnas:
        pairs[UNLIKE] = (cuts[UNLIKE, OWN_ROW], cuts[UNLIKE, FASTNAS_ROW])
    return [
        one
        for one, (own, peer) in pairs.items()
        if isinstance(own, Cut) and isinstance(peer, Cut) and sign * (peer.quality - own.quality) > slack * own.quality
    ]


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


def masked(arguments: argparse.Namespace) -> list[str]:
    """Print the table beside llm-compressor; where it is better."""
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
                seconds = by_peer(importance, pattern, family, tokens, arguments.environments)
                peer: Row | str = graded(family, corpus, arguments.rows, seconds)
            except RuntimeError as error:
                peer = str(error)
            family = loaded(corpus)
            own = graded(family, corpus, arguments.rows, by_slimexp(importance, pattern, family, corpus))
            rows[pattern, importance] = own, peer
            print(f"{pattern}, {importance}: {own}, {peer}", flush=True)
    print(f"\n{table(dense, rows)}", flush=True)
    return [
        " ".join(key)
        for key, (own, peer) in rows.items()
        if isinstance(peer, Row) and higher(own, peer, arguments.slack)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--importances", nargs="*", choices=IMPORTANCES, default=list(IMPORTANCES))
    parser.add_argument("--patterns", nargs="*", choices=STRUCTURES, default=list(STRUCTURES))
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="to lose structure")
    parser.add_argument("--share", type=float, default=0.75, help="of the parameters that structured pruning leaves")
    parser.add_argument("--scored", type=int, default=1, help="training rows that FastNAS scores each number by")
    parser.add_argument("--rows", type=int, default=200, help="of the test split, of a language model")
    parser.add_argument("--seconds", type=float, default=60, help="that torch-pruning has for a model")
    parser.add_argument("--slack", type=float, default=0.005, help="share by which ours may be worse")
    parser.add_argument("--environments", type=Path, default=PEERS / ".venv", help="what setup.sh made")
    arguments = parser.parse_args()
    for peer in (LLM_COMPRESSOR, TORCH_PRUNING, MODELOPT):
        if not (arguments.environments / peer / "bin" / "python").exists():
            sys.exit(f"no {arguments.environments / peer}: run sh benchmarks/peers/setup.sh")
    arguments.environments = arguments.environments.absolute()
    worse = masked(arguments) if arguments.patterns and arguments.importances else []
    for model in arguments.models:
        corpus: Corpus = build(compose([f"data={MODELS[model].corpus}"]).data)
        cuts = structured(model, corpus, arguments)
        print(f"\n{model}:\n\n{cuts_table(corpus.headline, cuts)}", flush=True)
        worse += [f"{model} {axes}" for axes in beaten(MODELS[model], cuts, corpus.direction, arguments.slack)]
    if worse:
        sys.exit(f"worse than a peer: {', '.join(worse)}")


def higher(own: Row, peer: Row, slack: float) -> bool:
    """Whether ours is worse than a peer that pruned as much."""
    return peer.zeros >= own.zeros - 0.01 and own.perplexity > peer.perplexity * (1 + slack)


if __name__ == "__main__":
    main()
