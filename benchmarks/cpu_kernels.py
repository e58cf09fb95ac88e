"""How much faster do packed integers run on this CPU than the same model in float32 and bfloat16?

    python -m benchmarks.cpu_kernels
    python -m benchmarks.cpu_kernels --toy    # seconds: every step at small sizes; no ratio is judged

Random weights, so only time is measured: an encoder of BERT-base's shape reads 128 tokens, and a decoder of Llama's
shape with 0.35B parameters decodes with a key-value cache. All variants take turns round by round; ratios are medians
over rounds of float32 / variant, with their quartiles, beside the ratio of the least times, which a busy machine
changes less. "No compiler" is torch's own product of integers, what runs where there is none. Then a grid of 60 layer
shapes: the kernel that the autotuner chose, beside a plain linear layer in float32 and in bfloat16, over weights that
no cache holds. A shape is lost where the kernel's least time exceeds 1.05 of the better one's. Prints Markdown; exits
with status 1 where int8 misses a target or a shape is lost.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.rounding import rounded
from slimexp.kernel.autotune import fastest, kernel_summary, replace_layers
from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.int_mm import IntMM

TARGETS = {"encoder": 3.5, "decoder": 3.5}
GRID = {"out": (256, 768, 1024, 3072, 4096), "in": (256, 768, 1024, 3072), "rows": (1, 16, 128)}
ENCODER = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 30522,
}  # fmt: skip
DECODER = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16,
    "vocab_size": 32000,
}  # fmt: skip
TOY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 512,
}  # fmt: skip
TOY_GRID = {"out": (128,), "in": (128, 256), "rows": (1, 16)}
LOST = 1.05
GROUP = 128


def narrow(layer: nn.Linear, bits: int) -> Packed:
    """``layer`` in ``bits``: 8 per row with inputs rounded per token, 4 per group with float inputs."""
    return rounded(layer, 8, None)._replace(activation="token") if bits == 8 else rounded(layer, bits, GROUP)


def quantized(
    model: PreTrainedModel, bits: int, *, head: bool = True, on: type[Kernel] | None = None
) -> PreTrainedModel:
    """Every linear layer of ``model`` on the fastest kernels, in place.

    Args:
        bits: Of the weights; an output layer has 8.
        head: Whether its output layer too.
        on: The one kernel to use instead.
    """
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    if not head:
        layers.pop("lm_head")
    packed = {n: narrow(one, 8 if n == "lm_head" else bits) for n, one in layers.items()}
    if on is None:
        replace_layers(model, packed)
    else:
        for name, layer in packed.items():
            model.set_submodule(name, on(layer))
    return model


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds per variant and round, after one round that does not count; the order turns."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for turn in range(rounds + 1):
        for name in order:
            start = time.perf_counter()
            variants[name]()
            if turn:
                taken[name].append(time.perf_counter() - start)
        order = order[1:] + order[:1]
    return taken


def ratios(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of ``slow / fast``, round by round."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return middle, low, high


def encoders(sizes: Mapping[str, Any]) -> dict[str, Callable[[], object]]:
    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        return BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()

    ids = torch.randint(3, sizes["vocab_size"], (1, 128))
    models = {"float32": build(), "bfloat16": build().bfloat16(), "int8": quantized(build(), 8)}
    models |= {"int8, no compiler": quantized(build(), 8, on=IntMM), "int4": quantized(build(), 4)}
    for name in ("int8", "int4"):
        print(f"encoder {name}: {kernel_summary(models[name])}", file=sys.stderr)
    return {name: (lambda model=model: model(input_ids=ids)) for name, model in models.items()}


def decoders(sizes: Mapping[str, Any], tokens: int) -> dict[str, Callable[[], object]]:
    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **sizes)).eval()

    models = {"float32": build(), "bfloat16": build().bfloat16(), "int8": quantized(build(), 8)}
    models |= {"int8, head in float32": quantized(build(), 8, head=False)}
    models |= {"int8, no compiler": quantized(build(), 8, on=IntMM), "int4": quantized(build(), 4)}
    for name in ("int8", "int4"):
        print(f"decoder {name}: {kernel_summary(models[name])}", file=sys.stderr)
    prompt = torch.randint(3, sizes["vocab_size"], (1, 16))

    def decode(model: PreTrainedModel) -> Callable[[], object]:
        filled = DynamicCache(config=model.config)
        model(input_ids=prompt, past_key_values=filled, use_cache=True)

        def run() -> None:
            if over := filled.get_seq_length() - prompt.shape[1]:
                filled.crop(-over)
            ids = prompt[:, -1:]
            for _ in range(tokens):
                ids = model(input_ids=ids, past_key_values=filled, use_cache=True).logits[:, -1:].argmax(-1)

        return run

    return {name: decode(model) for name, model in models.items()}


def report(title: str, taken: Mapping[str, list[float]], unit: str, value: Callable[[float], float]) -> float:
    """Print the table; returns int8's ratio to float32."""
    print(f"\n| {title} | {unit} | x float32 (quartiles) | of least times | x bfloat16 | of least times |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, seconds in taken.items():
        middle, low, high = ratios(taken["float32"], seconds)
        half, _, _ = ratios(taken["bfloat16"], seconds)
        least, least_half = (min(taken[other]) / min(seconds) for other in ("float32", "bfloat16"))
        shown = f"{value(statistics.median(seconds)):.1f} | {middle:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {shown} | {least:.2f} | {half:.2f} | {least_half:.2f} |")
    return ratios(taken["float32"], taken["int8"])[0]


def grid(sizes: Mapping[str, Sequence[int]], rounds: int) -> list[tuple[int, int, int, float]]:
    """(out, in, rows, time of the chosen kernel over that of the better float type) of every shape."""
    found = []
    for out, size in itertools.product(sizes["out"], sizes["in"]):
        copies = max(1, min(16, int(64e6 / (4 * out * size))))
        single = [nn.Linear(size, out, bias=False) for _ in range(copies)]
        half = [nn.Linear(size, out, bias=False, dtype=torch.bfloat16) for _ in range(copies)]
        packed = narrow(single[0], 8)
        kernels = [fastest(packed) for _ in range(copies)]
        for rows in sizes["rows"]:
            x = torch.randn(rows, size)
            x_half = x.bfloat16()
            runners: dict[str, Callable[[], object]] = {
                "kernel": lambda x=x, ones=kernels: [one(x) for one in ones],
                "float32": lambda x=x, ones=single: [one(x) for one in ones],
                "bfloat16": lambda x=x_half, ones=half: [one(x) for one in ones],
            }
            taken = interleaved(runners, rounds)
            better = min(*taken["float32"], *taken["bfloat16"])
            found.append((out, size, rows, min(taken["kernel"]) / better))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=16, help="decoded per round")
    parser.add_argument("--only", choices=("encoder", "decoder", "grid"))
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    toy = arguments.toy
    missed = []
    with torch.inference_mode():
        if arguments.only in (None, "encoder"):
            taken = interleaved(encoders(TOY if toy else ENCODER), arguments.rounds)
            reached = report("encoder, 128 tokens", taken, "ms", lambda seconds: 1e3 * seconds)
            missed += [f"encoder {reached:.2f}x"] * (reached < TARGETS["encoder"])
        if arguments.only in (None, "decoder"):
            taken = interleaved(decoders(TOY if toy else DECODER, arguments.tokens), arguments.rounds)
            reached = report("decoder, batch 1", taken, "tokens/s", lambda seconds: arguments.tokens / seconds)
            missed += [f"decoder {reached:.2f}x"] * (reached < TARGETS["decoder"])
        if arguments.only in (None, "grid"):
            shapes = grid(TOY_GRID if toy else GRID, arguments.rounds)
            lost = [shape for shape in shapes if shape[-1] > LOST]
            print(f"\n{len(shapes) - len(lost)} of {len(shapes)} layer shapes are not slower than the best float type")
            print("".join(f"- {o} x {i}, {rows} rows: {ratio:.2f} of its time\n" for o, i, rows, ratio in lost))
            missed += [f"{len(lost)} shapes slower"] * bool(lost)
    if missed and not toy:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
