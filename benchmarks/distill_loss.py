"""How long does a divergence from a teacher take by itself, forward and backward, and how much memory?

    python -m benchmarks.distill_loss
    python -m benchmarks.distill_loss --loss kl --logits-at-once 134217728
    python -m benchmarks.distill_loss --toy

At the shape that Liger-Kernel publishes (``TOKENS`` tokens, states of ``WIDTH``, a vocabulary of ``VOCABULARY``,
bfloat16) the loss is computed from last hidden states and output matrices of student and teacher, with the gradients of
the student's states and matrix. Contenders, one after the other: slimexp's sums in chunks as ``trainer=gpu`` has them;
torch on whole logits, as it is and compiled; where liger-kernel is installed (``sh benchmarks/peers/setup.sh liger``),
its two divergences from states, chunked and in Triton, which are the generalized Jensen-Shannon divergence at
``--beta`` (0: the forward divergence, what torch and slimexp's ``kl`` compute here).

Milliseconds are the median of ``--repeats`` on the device's own clock; GB (10^9 bytes) the peak of all that is
allocated, matrices and states included. Before that, value and gradients on a slice of the tokens are held against
float64. Prints Markdown; exit status 1 where slimexp takes more than ``--most-ms`` or ``--most-gb``, or where a
gradient is off.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.loss.base import LabelLoss
from slimexp.model.head import Head
from slimexp.technique.label_sums import LabelSums

TOKENS, WIDTH, VOCABULARY = 8192, 4096, 128_256  # Liger-Kernel's published benchmark of its divergences
TOY = 32, 16, 320
SLICE = 64  # tokens that are compared with float64
OFF = 0.02  # largest error of a gradient, a share of its norm: products are in bfloat16
WARMUP = 3
LOGITS_AT_ONCE = compose(["pipeline=distill", "trainer=gpu"]).trainer.logits_at_once

Loss = Callable[[Tensor, Tensor], Tensor]  # states of student and teacher -> mean over tokens, with gradient


@dataclass(frozen=True)
class Case:
    """What a divergence is computed of.

    Attributes:
        student: The student's output matrix.
        teacher: The teacher's.
        states: Inputs of the one, [N, D].
        taught: Inputs of the other, [N, D].
        labels: [N].
    """

    student: nn.Linear
    teacher: nn.Linear
    states: Tensor
    taught: Tensor
    labels: Tensor

    @classmethod
    def random(cls, tokens: int, width: int, vocabulary: int, device: torch.device, weights: torch.dtype) -> "Case":
        torch.manual_seed(0)
        heads = [nn.Linear(width, vocabulary, bias=False, device=device, dtype=weights) for _ in range(2)]
        for head in heads:
            nn.init.normal_(head.weight, std=width**-0.5)
        heads[1].requires_grad_(False).to(torch.bfloat16)
        states, taught = (torch.randn(tokens, width, device=device, dtype=torch.bfloat16) for _ in range(2))
        student, teacher = heads
        return cls(student, teacher, states, taught, torch.randint(vocabulary, (tokens,), device=device))

    def first(self, tokens: int) -> "Case":
        """The same of the first tokens alone."""
        return Case(self.student, self.teacher, self.states[:tokens], self.taught[:tokens], self.labels[:tokens])


def chosen(name: str, overrides: list[str]) -> LabelLoss:
    """The loss of ``conf/loss`` of that name, with overrides of its settings."""
    place = f"pipeline.distill.losses.{name}"
    added = [] if name == "kl" else [f"+loss@{place}={name}"]
    node = compose(["pipeline=distill", *added, *(f"{place}.{line}" for line in overrides)]).pipeline.distill
    loss: LabelLoss = build(node.losses[name])
    return loss


def ours(case: Case, loss: LabelLoss, at_once: int, *, compiled: bool) -> Loss:
    """slimexp's sums over labels, a chunk at a time."""
    sums = LabelSums(
        {"loss": loss}, student=Head(case.student), teacher=Head(case.teacher), logits_at_once=at_once
    )  # fmt: skip
    if compiled:
        sums.compile()
    device = case.states.device
    scheduled = {name: torch.tensor(value, device=device) for name, value in loss.scheduled(1.0).items()}
    each = torch.full((1,), 1 / len(case.labels), device=device)

    def compute(states: Tensor, taught: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return sums(states, taught, case.labels, each, {"loss": scheduled})[0]

    return compute


def plain(case: Case, *, compiled: bool) -> Loss:
    """The forward divergence on whole logits."""

    def divergence(logits: Tensor, expected: Tensor) -> Tensor:
        log, target = F.log_softmax(logits.float(), dim=-1), F.log_softmax(expected.float(), dim=-1)
        return F.kl_div(log, target, log_target=True, reduction="batchmean")

    of_logits = torch.compile(divergence) if compiled else divergence

    def compute(states: Tensor, taught: Tensor) -> Tensor:
        with torch.no_grad():
            expected = F.linear(taught, case.teacher.weight)
        return of_logits(F.linear(states, case.student.weight.to(states.dtype)), expected)

    return compute


def liger(case: Case, beta: float) -> dict[str, Loss]:
    """Liger-Kernel's, where it is installed."""
    if find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    chunked = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)
    fused = LigerFusedLinearJSD(jsd_beta=beta)

    def of_chunks(states: Tensor, taught: Tensor) -> Tensor:
        result = chunked(states, case.student.weight, taught, case.teacher.weight, case.labels)
        total: Tensor = result[0] if isinstance(result, tuple) else result
        return total

    def in_triton(states: Tensor, taught: Tensor) -> Tensor:
        total: Tensor = fused(states, case.student.weight, taught, case.teacher.weight, case.labels)
        return total

    return {"liger, chunked": of_chunks, "liger, Triton": in_triton}


def exact(case: Case, loss: LabelLoss) -> list[Tensor]:
    """Value and gradients of states and matrix in float64."""
    states, weight = (t.detach().double().requires_grad_() for t in (case.states, case.student.weight))
    expected = F.linear(case.taught.double(), case.teacher.weight.double())
    with torch.autocast(case.states.device.type, enabled=False):
        value = _in_float64(loss, F.linear(states, weight), expected, case.labels) / len(case.labels)
        return [value.detach(), *torch.autograd.grad(value, [states, weight])]


def _in_float64(loss: LabelLoss, logits: Tensor, expected: Tensor, labels: Tensor) -> Tensor:
    """A loss whose own ``float()`` keeps float64."""

    class Float64(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if function is Tensor.float else function(*args, **(kwargs or {}))

    with Float64():
        return loss.of_logits(logits, expected, labels, loss.scheduled(1.0))


def errors(case: Case, compute: Loss, loss: LabelLoss) -> list[float]:
    """Errors of value, of the states' gradient and of the matrix', each a share of the norm."""
    states = case.states.detach().requires_grad_()
    value = compute(states, case.taught)
    found = [value.detach(), *torch.autograd.grad(value, [states, case.student.weight])]
    pairs = zip(found, exact(case, loss), strict=True)
    return [float((computed.double() - expected).norm() / expected.norm()) for computed, expected in pairs]


def measured(case: Case, compute: Loss, repeats: int) -> tuple[float, float]:
    """Milliseconds of forward and backward, the median; peak memory in bytes, 0 on a CPU."""
    on_gpu = case.states.is_cuda
    states = case.states.detach().requires_grad_()

    def once() -> float:
        states.grad = case.student.weight.grad = None
        if not on_gpu:
            began = time.perf_counter()
            compute(states, case.taught).backward()
            return 1e3 * (time.perf_counter() - began)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        compute(states, case.taught).backward()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    for _ in range(WARMUP):
        once()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = [once() for _ in range(repeats)]
    peak = float(torch.cuda.max_memory_allocated()) if on_gpu else 0.0
    states.grad = case.student.weight.grad = None
    return statistics.median(times), peak


def show(arguments: argparse.Namespace, case: Case, loss: LabelLoss) -> list[str]:
    """Print the table; returns what misses its target."""
    compiled = case.states.is_cuda
    small = case.first(SLICE)
    off = errors(small, ours(small, loss, arguments.logits_at_once, compiled=compiled), loss)
    print(f"of float64, on {len(small.labels)} tokens: value {off[0]:.1e}, states {off[1]:.1e}, matrix {off[2]:.1e}\n")
    contenders = {"slimexp": ours(case, loss, arguments.logits_at_once, compiled=compiled)}
    contenders |= {"torch": plain(case, compiled=False)}
    contenders |= {"torch, compiled": plain(case, compiled=True)} if compiled else {}
    contenders |= liger(case, arguments.beta) if compiled and case.student.weight.dtype == torch.bfloat16 else {}
    print("| | ms | GB | x slimexp |\n| --- | ---: | ---: | ---: |")
    found: dict[str, tuple[float, float]] = {}
    for name, compute in contenders.items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            found[name] = measured(case, compute, arguments.repeats)
        except (RuntimeError, TypeError) as error:  # out of memory, or a peer of another version
            if name == "slimexp":
                raise
            print(f"| {name} | {str(error).splitlines()[0][:80]} | | |", flush=True)
            continue
        ms, peak = found[name]
        ratio = ms / found.get("slimexp", (ms, 0.0))[0]
        print(f"| {name} | {ms:.1f} | {peak / 1e9:.1f} | {ratio:.2f} |", flush=True)
    missed = [f"a gradient is off by {max(off[1:]):.2g} of its norm"] if max(off[1:]) > OFF else []
    ms, peak = found.get("slimexp", (0.0, 0.0))
    missed += [f"{ms:.1f} ms, of at most {arguments.most_ms:g}"] if ms > arguments.most_ms else []
    missed += [f"{peak / 1e9:.1f} GB, of at most {arguments.most_gb:g}"] if peak > 1e9 * arguments.most_gb else []
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="kl", help="of conf/loss, a sum over labels")
    parser.add_argument("--set", nargs="*", default=["temperature.start=1.0"], help="settings of the loss, KEY=VALUE")
    parser.add_argument("--beta", type=float, default=0.0, help="of liger's divergence (0: the forward one)")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--logits-at-once", type=int, default=LOGITS_AT_ONCE)
    parser.add_argument("--weights", choices=["bfloat16", "float32"], default="bfloat16", help="type of the matrix")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="contenders (default: all)")
    parser.add_argument("--most-ms", type=float, default=61.0)
    parser.add_argument("--most-gb", type=float, default=11.0)
    parser.add_argument("--toy", action="store_true", help="a small shape on the CPU, to see that it runs")
    arguments = parser.parse_args()
    if not arguments.toy and not torch.cuda.is_available():
        sys.exit("this is timed on a CUDA GPU, and there is none: --toy runs on a CPU")
    device = torch.device("cpu" if arguments.toy else "cuda")
    tokens, width, vocabulary = TOY if arguments.toy else (arguments.tokens, WIDTH, VOCABULARY)
    if arguments.toy:
        arguments.repeats, arguments.logits_at_once = 3, 7 * vocabulary
    hardware = "CPU" if arguments.toy else torch.cuda.get_device_name()
    print(f"\n{hardware}, torch {torch.__version__}: {tokens} tokens, width {width}, vocabulary {vocabulary}\n")
    case = Case.random(tokens, width, vocabulary, device, getattr(torch, arguments.weights))
    if missed := show(arguments, case, chosen(arguments.loss, arguments.set)):
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
