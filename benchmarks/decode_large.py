"""How many tokens per second does a 2B model decode, and how near is that to what the memory allows?

    python -m benchmarks.decode_large               # one GPU
    python -m benchmarks.decode_large --toy         # seconds: does it run?
    python -m benchmarks.decode_large --only int4   # these arms alone
    python -m benchmarks.decode_large --tune 60     # times ways to cut each product, instead; --only fp8 of these alone

A Llama-shaped model of random weights decodes 256 tokens behind a prompt of 128, batch 1. A step reads every weight
once, so the card's copy bandwidth, measured in the same run, bounds tokens per second; targets were set for 4.23 TB/s
and scale with it. Quantized arms round to nearest, the output layer included. Prints Markdown; exits with status 1
where a target is missed.
"""

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, get_args

os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()  # what compiling costs is measured too

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.prune_large import LARGE, TOY
from benchmarks.rounding import rounded
from slimexp.decode.base import Decoder
from slimexp.decode.fused import FeedForward, Fused
from slimexp.decode.operand import Kind, Tile, Vector, launch, stacked
from slimexp.decode.packed_linear import BLOCK, PackedLinear
from slimexp.kernel.base import FLOAT8, Packed
from slimexp.kernel.cuda_graph import capture
from slimexp.kernel.scaled_mm import ScaledMM

PROMPT, TOKENS, LENGTH = 128, 256, 512
BANDWIDTH = 4.23e12  # bytes per second, of the card that targets were set on
SMALLER = 0.75
CUDA = torch.device("cuda")
ATTENTION = ((16, 1, 16), (16, 1, 32), (32, 1, 16), (32, 2, 16), (32, 4, 8), (64, 4, 8), (64, 8, 8), (128, 8, 4))


class Arm(NamedTuple):
    """A way to decode.

    Attributes:
        kind: Of the weights.
        group: Weights that share a scale; ``None`` for a row.
        how: ``"generate"``, ``"captured"`` or ``"fused"``.
        layers: Share of the model's.
        target: Tokens per second at ``BANDWIDTH``; ``None`` where there is none.
    """

    kind: Kind = "dense"
    group: int | None = None
    how: str = "fused"
    layers: float = 1.0
    target: float | None = None


ARMS = {
    "generate": Arm(how="generate"),
    "captured step": Arm(how="captured"),
    "fused, bf16": Arm(target=800),
    "fused, int8": Arm("int8", target=1300),
    "fused, fp8": Arm("fp8"),
    "fused, int4 group 128": Arm("int4", 128, target=1800),
    "a quarter of the layers gone, bf16": Arm(layers=SMALLER),
    "a quarter of the layers gone, int8": Arm("int8", layers=SMALLER),
    "a quarter of the layers gone, int4": Arm("int4", 128, layers=SMALLER),
}


class Speed(NamedTuple):
    """What an arm reached.

    Attributes:
        tokens: Per second.
        first: Seconds from the model in memory to the first token, compiling included.
        memory: Peak, in GB.
        bytes: That a step reads.
        error: Relative difference of the logits from transformers'; ``None`` where they are its own.
    """

    tokens: float
    first: float
    memory: float
    bytes: int
    error: float | None


def copy_bandwidth(gigabytes: float) -> float:
    """Bytes read and written per second."""
    source = torch.randn(int(gigabytes * 2**28), device="cuda")
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), 20)
    return 2 * source.numel() * source.element_size() / seconds


def random_model(sizes: Mapping[str, Any], arm: Arm, device: str = "cuda") -> PreTrainedModel:
    torch.manual_seed(0)
    layers = max(1, round(arm.layers * sizes["num_hidden_layers"]))
    config = LlamaConfig(**{**sizes, "num_hidden_layers": layers})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    if arm.kind != "dense":
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                model.set_submodule(name, _rounded(layer, arm))
    return model


def _rounded(layer: nn.Linear, arm: Arm) -> nn.Module:
    if arm.kind == "fp8":
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(-1, keepdim=True) / torch.finfo(FLOAT8).max
        return ScaledMM(Packed((weight / scale).to(FLOAT8), scale, None, 8, None, None))
    group = arm.group if arm.group and layer.in_features % arm.group == 0 else None
    return PackedLinear(rounded(layer, 4 if arm.kind == "int4" else 8, group))


@torch.inference_mode()
def speed(model: PreTrainedModel, arm: Arm, ids: torch.Tensor, tokens: int) -> Speed:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    error = None
    read = stacked_bytes(model)
    if arm.how == "generate":
        model.generate(ids, max_new_tokens=1, min_new_tokens=1, do_sample=False)
        torch.cuda.synchronize()
        first = time.monotonic() - began
        few = min(tokens, 48)
        began = time.monotonic()
        model.generate(ids, max_new_tokens=few, min_new_tokens=few, do_sample=False)
        torch.cuda.synchronize()
        rate = few / (time.monotonic() - began)
    else:
        decoder = _decoder(model, arm, ids.shape[1] + tokens)
        decoder.prefill(ids)
        decoder.decode(1)
        torch.cuda.synchronize()
        first = time.monotonic() - began
        rates = []
        for _ in range(3):
            decoder.prefill(ids)
            torch.cuda.synchronize()
            began = time.monotonic()
            decoder.decode(tokens)
            torch.cuda.synchronize()
            rates.append(tokens / (time.monotonic() - began))
        rate = sorted(rates)[1]
        if isinstance(decoder.steps, Fused):
            error = _error(decoder)
    return Speed(rate, first, torch.cuda.max_memory_allocated() / 1e9, read, error)


def _decoder(model: PreTrainedModel, arm: Arm, length: int) -> Decoder:
    if arm.how == "captured":
        return Decoder(model, length, fused=False)
    decoder = Decoder(model, length)
    if decoder.reason is not None:
        raise SystemExit(f"the fused kernels did not run: {decoder.reason}")
    return decoder


def _error(decoder: Decoder) -> float:
    """Of the last step's logits, from those of transformers for the same tokens."""
    count = int(decoder.steps.position)
    reference = decoder.model(input_ids=decoder.steps.tokens[:, :count], logits_to_keep=1).logits[0, -1].float()
    logits = decoder.steps.logits
    assert logits is not None
    return float((logits.flatten() - reference).norm() / reference.norm())


def stacked_bytes(model: PreTrainedModel) -> int:
    layers = [one for one in model.modules() if isinstance(one, nn.Linear | PackedLinear | ScaledMM)]
    return sum(stacked([layer], torch.bfloat16).bytes for layer in layers)


def _seconds(run: Callable[[], Any], times: int) -> float:
    """Mean of ``times`` runs, of three tries the median."""
    taken = []
    for _ in range(4):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            run()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3 / times)
    return sorted(taken[1:])[1]


def candidates(kind: Kind, end: str, columns: int) -> Iterator[Tile]:
    """Ways that keep 4 to 24 loads of 16 bytes per thread on their way; of packed ones a warp reads a row, or two."""
    both = 2 if end == "gated" else 1
    warp = 32 * 128 // {"dense": 16, "int4": 4}.get(kind, 8)  # columns that a warp reads at once
    packed = kind in ("int8", "int4")
    for wide, fold in ((warp, 1), (warp // 2, 2)) if packed else ((warp << up, 1) for up in range(4)):
        for rows, warps, ahead in itertools.product((2, 4, 8, 16, 32, 64), (4, 8, 16), (1, 2, 3, 5, 7, 10)):
            loads = rows * both * wide / (warps * warp)
            rounds = packed and end in ("gated", "residual")  # results by 32
            fits = loads >= 1 and ahead <= -(-columns // wide) and (rows >= BLOCK or not rounds)
            if fits and loads <= (8 if packed else 4) and 4 <= loads * ahead <= (24 if packed else 16):
                yield Tile(rows, wide, warps, fold, ahead)


@torch.inference_mode()
def tune(sizes: Mapping[str, Any], only: str, deadline: float) -> None:
    """Print microseconds and bandwidth of every way to cut every product, over the weights of all blocks in turn."""
    for kind in (kind for kind in get_args(Kind)[::-1] if only in kind):
        model = random_model(sizes, Arm(kind, 128 if kind == "int4" else None))
        fused = Fused(model, LENGTH, overlap=True)
        feed_forwards = [part for part in fused.parts if isinstance(part, FeedForward)]
        ends = {
            "plain": [part.into for part in fused.attentions],
            "gated": [part.into for part in feed_forwards],
            "residual o": [part.out for part in fused.attentions],
            "residual down": [part.out for part in feed_forwards],
            "head": [fused.head] * 6,
        }
        for what, matrices in ends.items():
            taken = _by_tile(fused, matrices, what.split()[0], deadline)
            if not taken:
                return
            ranked = sorted(taken.items(), key=lambda one: one[1])
            cells = [
                f"{cut.rows}x{cut.columns}/{cut.warps} {cut.fold} {cut.ahead}: {1e6 * seconds:.2f}"
                for cut, seconds in ranked[:6] + ranked[-1:]
            ]
            rate = matrices[0].bytes / ranked[0][1] / 1e12
            print(
                f"{kind} {what}: best {rate:.2f} TB/s; µs, rows x columns / warps fold ahead: {', '.join(cells)}",
                flush=True,
            )
        if kind == "dense":
            tune_rest(fused)
        del fused, model, matrices, ends, feed_forwards
        gc.collect()
        torch.cuda.empty_cache()


def _by_tile(fused: Fused, matrices: list[Any], end: str, deadline: float) -> dict[Tile, float]:
    """Seconds of a product by how it is cut; what does not run is told and left out."""
    taken: dict[Tile, float] = {}
    for cut in candidates(matrices[0].kind, end, matrices[0].columns):
        if time.monotonic() > deadline:
            break
        try:
            taken[cut] = _seconds(capture(partial(_all, fused, matrices, end, cut), CUDA).replay, 10) / len(matrices)
        except (RuntimeError, ValueError) as error:
            print(f"{cut} does not run: {error}", flush=True)
    return taken


def tune_rest(fused: Fused) -> None:
    """Print microseconds of attention by position, and of a whole step with and without overlap."""
    attentions = fused.attentions
    for keys, warps, splits in ATTENTION:
        fused.KEYS, fused.splits, fused.WARPS = keys, splits, warps
        fused.partial = torch.zeros(max(part.heads for part in attentions), splits, fused.width + 2, device="cuda")
        cells = []
        for position in (1, 128, 256, 500):
            fused.position.fill_(position)
            run = capture(lambda: [fused.attend(part) for part in attentions], CUDA).replay
            cells.append(f"{1e6 * _seconds(run, 10) / len(attentions):.2f}")
        print(f"attention, {keys} keys, {warps} warps, {splits} splits, at 1, 128, 256, 500: {' '.join(cells)} µs")
    fused.position.fill_(0)
    run = capture(lambda: [fused.advance(chooses=False) for _ in range(20)], CUDA).replay
    print(f"advance: {1e6 * _seconds(run, 10) / 20:.2f} µs", flush=True)
    for overlap in (True, False):
        fused.overlap = overlap
        fused.position.fill_(128)
        print(f"step, overlap {overlap}: {1e6 * _seconds(capture(fused.step, CUDA).replay, 30):.0f} µs", flush=True)


def _all(fused: Fused, matrices: list[Any], end: str, cut: Tile) -> None:
    first = matrices[0]
    out, x = (Vector(size, torch.bfloat16, first.weight.device) for size in (first.rows, first.columns))
    squares = None if end == "residual" else fused.squares
    for matrix in matrices:
        launch(
            matrix, x, out, end, cut, rounds=first.packed and end in ("gated", "residual"), squares=squares,
            hidden=fused.hidden, gain=fused.first_gain, out_squares=torch.empty_like(fused.hidden),
            best=torch.empty(2, -(-first.rows // cut.rows), device="cuda"), position=fused.position, overlap=True,
        )  # fmt: skip


def table(reached: Mapping[str, Speed], bandwidth: float) -> str:
    lines = ["| arm | tokens/s | of the bound | target | first token, s | peak GB | read GB | logits differ |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, one in reached.items():
        target = ARMS[name].target
        aim = "" if target is None else f"{target * bandwidth / BANDWIDTH:.0f}"
        error = "" if one.error is None else f"{one.error:.2%}"
        share = one.tokens * one.bytes / bandwidth
        figures = f"{one.tokens:.0f} | {share:.0%} | {aim} | {one.first:.1f} | {one.memory:.1f} | {one.bytes / 1e9:.2f}"
        lines.append(f"| {name} | {figures} | {error} |")
    return "\n".join(lines)


def missed(reached: Mapping[str, Speed], bandwidth: float) -> list[str]:
    """Targets that were not met."""
    aims = {name: target * bandwidth / BANDWIDTH for name in reached if (target := ARMS[name].target) is not None}
    return [
        f"{name}: {reached[name].tokens:.0f} < {aim:.0f}" for name, aim in aims.items() if reached[name].tokens < aim
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a model of 0.1 M parameters; no targets")
    parser.add_argument("--only", default="", metavar="WORDS", help="arms whose name has these words")
    parser.add_argument("--tune", type=float, metavar="SECONDS", help="time ways to cut each product for so long")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("decoding is measured on a CUDA GPU, and there is none")
    sizes = TOY if arguments.toy else LARGE
    bandwidth = copy_bandwidth(0.1 if arguments.toy else 4)
    print(
        f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, copies {bandwidth / 1e12:.2f} TB/s\n", flush=True
    )
    if arguments.tune:
        return tune(sizes, arguments.only, time.monotonic() + arguments.tune)
    tokens, prompt = (16, 8) if arguments.toy else (TOKENS, PROMPT)
    ids = torch.randint(sizes["vocab_size"], (1, prompt), generator=torch.Generator().manual_seed(0)).cuda()
    reached: dict[str, Speed] = {}
    for name, arm in ARMS.items():
        if arguments.only not in name:
            continue
        model = random_model(sizes, arm)
        reached[name] = speed(model, arm, ids, tokens)
        print(f"{name}: {reached[name].tokens:.0f} tokens/s", flush=True)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    print(f"\n{table(reached, bandwidth)}\n")
    if not arguments.toy and (failures := missed(reached, bandwidth)):
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main()
