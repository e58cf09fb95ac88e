"""How fast does a student write its batches: through the decode loop, or by transformers' ``generate``?

    python -m benchmarks.on_policy                          # one GPU, the shape of SmolLM2-135M
    python -m benchmarks.on_policy --student quantized      # or masked: attachments are computed at every token
    python -m benchmarks.on_policy --toy                    # seconds, on the CPU: does it run?

A student of random weights goes on after prompts of one length, until every row has all its tokens (none ends a text),
as in on-policy distillation: in float32, sampled, and weights change in place before every batch. Both ways take turns,
and the loop's first batch, in which its step is recorded, is a figure of its own. Prints a row of Markdown per way:
median seconds of a batch, tokens per second, peak GiB above the weights, and the share of greedy tokens in which the
two agree; exits with status 1 where the loop is not ``--target`` times as fast.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.training_speed import GROUP, SHAPE, TOY
from slimexp.completion.generation import Decoding, generate_by_decode_loop, generate_by_transformers
from slimexp.decode.kept import KeptDecoder
from slimexp.model.base import Family
from slimexp.model.causal_lm import CausalLm
from slimexp.model.layer import latent
from slimexp.model.tokenizer import Bytes
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach
from slimexp.weight.mask import Mask

STUDENTS = ("dense", "masked", "quantized")
Write = Callable[[int], Tensor]  # seed -> ids of prompts and texts [B, T]


class Speed(NamedTuple):
    """What one way takes.

    Attributes:
        name: The way.
        first: Seconds of its first batch.
        batch: Seconds of a later one, the median.
        memory: Peak GiB above what there was before.
    """

    name: str
    first: float
    batch: float
    memory: float


def student_of(kind: str, *, toy: bool) -> Family:
    """A family of random weights on the device that computes, none of whose tokens ends a text."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(TOY if toy else SHAPE)))  # type: ignore[arg-type]
    model.generation_config.eos_token_id = None
    family = CausalLm(model, Bytes().build([]), max_length=model.config.max_position_embeddings)
    for layer in family.compressible().values():
        if kind == "masked":
            attach(layer, "weight", mask := Mask(shape=latent(layer).shape))
            mask.mask[:, ::2] = False
        if kind == "quantized":
            attach(layer, "weight", MinMax(bits=4, group_size=8 if toy else GROUP))
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() and not toy else "cpu")
    return family


@torch.no_grad()
def trained(family: Family) -> None:
    """Change all weights in place, as a step of an optimizer does."""
    for parameter in family.model.parameters():
        parameter.mul_(0.999)


def seconds(write: Write, seed: int) -> float:
    """Of one batch, to its last token being on the host."""
    began = time.perf_counter()
    write(seed).tolist()
    return time.perf_counter() - began


def peak(device: torch.device) -> float:
    """Peak GiB since the last call; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    found = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return found


def compared(family: Family, ways: dict[str, Write], rounds: int) -> list[Speed]:
    """Figures of ways to write that take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0.0)
    peak(family.device)
    before = torch.cuda.memory_allocated() / 2**30 if family.device.type == "cuda" else 0.0
    for number in range(rounds + 1):
        trained(family)
        for name, write in ways.items():
            taken[name].append(seconds(write, number))
            peaks[name] = max(peaks[name], peak(family.device) - before)
            print(f"  batch {number}, {name}: {taken[name][-1]:.3f} s", flush=True)
    return [Speed(name, first, statistics.median(later), peaks[name]) for name, (first, *later) in taken.items()]


def agreement(one: Tensor, other: Tensor, prompt: int) -> float:
    """Share of tokens behind the prompt that are the same in [B, T] and [B, T]."""
    return float((one[:, prompt:] == other[:, prompt:]).float().mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=STUDENTS, default="dense")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="written in each row")
    parser.add_argument("--rounds", type=int, default=5, help="batches of each way, beside the first")
    parser.add_argument("--target", type=float, default=0.0, help="least ratio of tokens per second to generate's")
    parser.add_argument("--toy", action="store_true", help="a tiny model on the CPU, to see that it runs")
    given = parser.parse_args(arguments)
    if given.toy:
        given.rows, given.prompt, given.tokens, given.rounds = 2, 8, 16, 2
    family = student_of(given.student, toy=given.toy)
    prompts = torch.randint(
        family.model.config.vocab_size, (given.rows, given.prompt), generator=torch.Generator().manual_seed(1)
    )
    sampled, greedy = (Decoding(temperature=value, beams=1, longest=given.tokens) for value in (1.0, 0.0))

    def by_generate(seed: int, decoding: Decoding = sampled) -> Tensor:
        return generate_by_transformers(family, prompts, torch.ones_like(prompts), decoding, [seed])

    def by_loop(seed: int, decoding: Decoding = sampled) -> Tensor:
        output = generate_by_decode_loop(family, prompts, decoding, [seed], kept)
        if output is None:
            sys.exit("the decode loop cannot run this student")
        return output

    with KeptDecoder() as kept:
        generate, loop = speeds = compared(family, {"generate": by_generate, "decode loop": by_loop}, given.rounds)
        same = agreement(by_generate(0, greedy), by_loop(0, greedy), given.prompt)
    print("\n| way | first batch, s | batch, s | tokens/s | peak GiB |\n| --- | ---: | ---: | ---: | ---: |")
    for one in speeds:
        rate = given.rows * given.tokens / one.batch
        print(f"| {one.name} | {one.first:.2f} | {one.batch:.3f} | {rate:,.0f} | {one.memory:.2f} |")
    ratio = generate.batch / loop.batch
    print(f"\n{given.student} student: {ratio:.1f} times as fast, {same:.1%} of greedy tokens the same")
    if ratio < given.target:
        sys.exit(f"target missed: {ratio:.2f} < {given.target:g}")


if __name__ == "__main__":
    main()
