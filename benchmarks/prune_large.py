"""How long does one-shot pruning of a 2B model take, in how much memory, and what do 2:4 kernels gain?

    python -m benchmarks.prune_large            # one GPU, bfloat16, 128 rows of 2,048 tokens
    python -m benchmarks.prune_large --toy      # seconds, anywhere: does it run?

A Llama-shaped model of random weights goes through each technique of ``ARMS`` without training, as in a pipeline: it
lies in the machine's memory and its blocks visit the GPU. Time and memory do not depend on what the weights are worth.
Then every linear layer of the 2:4 model runs once dense and once by the GPU's semi-structured kernels, in turns, at 1,
16 and 128 rows; all layers and not one, whose weight would stay in the cache. Further overrides go to every technique.
Prints Markdown; exits with status 1 where a target is missed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.data.base import Corpus, Example, Split
from slimexp.model.base import Family, parameters
from slimexp.model.causal_lm import CausalLm
from slimexp.model.tokenizer import Bytes

LARGE = {
    "vocab_size": 32_768, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 28,
    "num_attention_heads": 20, "num_key_value_heads": 5, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
TOY = {
    "vocab_size": 259, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
MEMORY = 1.5  # most GPU memory, in weights of the model
ROWS = (1, 16, 128)
REPETITIONS, WARMUP = 30, 3


class Arm(NamedTuple):
    """A way to prune.

    Attributes:
        overrides: What is composed.
        seconds: Most it may take.
    """

    overrides: tuple[str, ...]
    seconds: float


def _prune(importance: str, *pattern: str) -> tuple[str, ...]:
    return ("pipeline=prune", f"importance@pipeline.prune.importance={importance}", *pattern)


_ROW, _TWO_OF_FOUR = "pipeline.prune.pattern.scope=row", "pattern@pipeline.prune.pattern=n_m"
ARMS = {  # one line per technique
    "wanda": Arm(_prune("wanda", _ROW), 60),
    "wanda 2:4": Arm(_prune("wanda", _TWO_OF_FOUR), 60),
    "sparsegpt": Arm(_prune("sparsegpt"), 360),
    "sparsegpt 2:4": Arm(_prune("sparsegpt", _TWO_OF_FOUR), 360),
    "a quarter removed": Arm(("pipeline=prune_structured", "pipeline.prune_structured.rows=8"), 120),
}


class Noise(Corpus):
    """Lines of random letters.

    Args:
        length: Of a line.
    """

    task = "causal_lm"
    headline = "perplexity"
    direction = "min"

    def __init__(self, *, length: int) -> None:
        self.length = length

    def load(self) -> Mapping[Split, Sequence[Example]]:
        letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (128, self.length), dtype=np.uint8)
        rows = [Example(line.tobytes().decode()) for line in letters]
        return {"train": rows, "validation": rows[:1], "test": rows[:1]}

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        raise NotImplementedError

    def trivial(self, examples: Sequence[Example]) -> float:
        raise NotImplementedError


class Cost(NamedTuple):
    """What an arm took.

    Attributes:
        seconds: Of preparing and pruning.
        memory: Most GPU memory, in weights of the model; ``None`` without a GPU.
        gone: Share of the layers' weights that are zero, or of the model's that were removed.
    """

    seconds: float
    memory: float | None
    gone: float


def random_model(sizes: Mapping[str, Any], device: torch.device) -> Family:
    """Made on ``device``, which is quick at it; it lies on the CPU, as a pipeline's model does."""
    torch.manual_seed(0)
    with torch.device(device), _default(torch.bfloat16):
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    return CausalLm(model.eval().cpu(), Bytes().build([]), max_length=sizes["max_position_embeddings"])


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cost(arm: Arm, family: Family, device: torch.device, overrides: Sequence[str]) -> Cost:
    """Prune ``family``, and see what it takes."""
    values = [*arm.overrides, *overrides]
    (technique,) = (build(node) for node in compose(values).pipeline.values())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters(family.model))
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    technique.compute_device = device
    corpus = Noise(length=family.max_length)
    _ = corpus.splits
    began = time.monotonic()
    technique.prepare(family, corpus, None)
    reached = technique.finish()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.monotonic() - began
    gone = reached["sparsity"] if "sparsity" in reached else 1 - reached["parameters"]
    return Cost(seconds, torch.cuda.max_memory_allocated(device) / weights if on_gpu else None, gone)


def has_kernels(device: torch.device) -> bool:
    """Whether the device multiplies 2:4 matrices: NVIDIA's from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def kernels(family: Family, device: torch.device) -> dict[tuple[int, str], tuple[float, float]]:
    """(Rows, how they are launched) -> milliseconds of all linear layers in turn, dense and by 2:4 kernels.

    Launched one by one from Python, and replayed as a CUDA graph, which leaves the kernels alone.
    """
    dense = [layer.weight.detach().to(device) for layer in family.compressible().values()]
    sparse = [torch.sparse.to_sparse_semi_structured(weight) for weight in dense]
    taken = {}
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width, device=device, dtype=dense[0].dtype) for width in widths(dense)}
        passes = [_pass(inputs, dense), _pass(inputs, sparse)]
        taken[rows, "one by one"] = _in_turns(passes)
        taken[rows, "graph"] = _in_turns([_graph(run) for run in passes])
    return taken


def _in_turns(passes: Sequence[Callable[[], None]]) -> tuple[float, float]:
    """Median milliseconds of either."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPETITIONS):
        for run, into in zip(passes, times, strict=True):
            into.append(_milliseconds(run))
    return median(times[0][WARMUP:]), median(times[1][WARMUP:])


def _graph(run: Callable[[], None]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # what is allocated once must be there before a capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def widths(weights: Sequence[Tensor]) -> set[int]:
    """What the layers read."""
    return {weight.shape[1] for weight in weights}


def _pass(inputs: Mapping[int, Tensor], weights: Sequence[Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return run


def _milliseconds(run: Callable[[], None]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def costs_table(costs: Mapping[str, Cost]) -> str:
    lines = ["| technique | gone | seconds | at most | peak memory / weights | at most |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, one in costs.items():
        memory = "no GPU" if one.memory is None else f"{one.memory:.2f}"
        figures = f"{one.gone:.1%} | {one.seconds:.1f} | {ARMS[name].seconds:g} | {memory} | {MEMORY:g}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def kernels_table(taken: Mapping[tuple[int, str], tuple[float, float]]) -> str:
    lines = ["| rows | launched | dense ms | 2:4 ms | 2:4 is faster |", "| ---: | --- | ---: | ---: | ---: |"]
    for (rows, how), (dense, sparse) in taken.items():
        lines.append(f"| {rows} | {how} | {dense:.2f} | {sparse:.2f} | {dense / sparse:.2f}x |")
    return "\n".join(lines)


def missed(costs: Mapping[str, Cost]) -> list[str]:
    """Targets that were not met."""
    slow = [f"{name} took {one.seconds:.0f} s" for name, one in costs.items() if one.seconds > ARMS[name].seconds]
    large = [
        f"{name} took {one.memory:.2f} times the weights in memory"
        for name, one in costs.items()
        if (one.memory or 0) > MEMORY
    ]
    return slow + large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", nargs="*", help=f"of {', '.join(ARMS)}; all unless named")
    parser.add_argument("--toy", action="store_true", help="a model of 0.1 M parameters")
    arguments, overrides = parser.parse_known_args()
    overrides += [word for word in arguments.arm if "=" in word]
    names = [word for word in arguments.arm if "=" not in word] or list(ARMS)
    if unknown := set(names) - ARMS.keys():
        parser.error(f"no such arm: {min(unknown)}; there are {', '.join(ARMS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = TOY if arguments.toy else LARGE
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"\nLlama-shaped, bfloat16, {where}, torch {torch.__version__}\n", flush=True)
    costs: dict[str, Cost] = {}
    speed: dict[tuple[int, str], tuple[float, float]] = {}
    for name in names:
        family = random_model(sizes, device)
        millions = sum(parameter.numel() for parameter in parameters(family.model)) / 1e6
        costs[name] = cost(ARMS[name], family, device, overrides)
        print(f"{name}: {costs[name].seconds:.1f} s for {millions:,.1f} M parameters", flush=True)
        if has_kernels(device) and "2:4" in name and not speed:
            speed = kernels(family, device)
    print(f"\n{costs_table(costs)}\n")
    if speed:
        print(kernels_table(speed))
    elif not has_kernels(device):
        print(f"2:4 kernels were not measured: they need a CUDA GPU of compute capability 8.0, and this is {where}")
    if failures := missed(costs):
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main()
