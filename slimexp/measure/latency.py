"""Latency and throughput of a request, beside the dense baseline in the same minute of the same process."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import psutil
import torch
from torch import Tensor

from slimexp.data.base import Corpus, Direction
from slimexp.host.progress import counted
from slimexp.measure.base import Measure, Subject, untouched
from slimexp.measure.interval import FEWEST_PAIRS, median_figures, quantile
from slimexp.measure.workload import Runner, Workload, runner


@dataclass(frozen=True)
class _Times:
    """Seconds of the two parts of one request."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode


@dataclass(frozen=True)
class _CpuClock:
    """Seconds of wall time, of idle cores, and of CPU time that this process used."""

    wall: float
    idle: float
    own: float

    @classmethod
    def now(cls) -> "_CpuClock":
        times = psutil.cpu_times()
        return cls(time.perf_counter(), times.idle + getattr(times, "iowait", 0.0), time.process_time())

    def others_since(self, before: "_CpuClock") -> float:
        """Number of cores that other processes used on average, at least 0 (clocks of the system tick coarsely)."""
        wall = self.wall - before.wall
        return max(0.0, _cores() - (self.idle - before.idle + self.own - before.own) / wall)


class Latency(Measure):
    """Latency of a whole request (prompt and answer) and throughput of its two parts.

    On a GPU both run as CUDA graphs where they can (``workload.runner``), a causal LM's decoding by ``decode.Decoder``.
    Subject and baseline take turns (A B, B A, A B, ...), so that what else the machine does falls on both;
    each pair gives a ratio. Figures:

    - ``latency_p50_ms``, ``latency_p95_ms``, ``prefill_tokens_per_s``, ``decode_tokens_per_s``, and the same
      of the baseline with ``_dense`` at the end. Classifiers do not decode.
    - ``latency_ratio``: median over pairs of subject / baseline, below 1 where the subject is faster;
      ``prefill_ratio``, ``decode_ratio``: the same of tokens per second, above 1 where it is faster. Each
      with ``_low`` and ``_high``, the 95 % interval of the median by order statistics (no assumption on
      the noise).
    - ``latency_others_cores``: CPU cores that other processes took meanwhile. ``latency_noisy``: 1 if the
      baseline's own p95 / p50 exceeds ``noisy_above``, or if on a CPU the others left fewer cores than this
      process has threads, by more than ``crowded_above``; else 0. The second is needed: one busy neighbour
      makes every parallel loop wait for a descheduled thread, ten times slower and quite evenly so.
    - ``latency_batch``, ``latency_tokens``, ``latency_new_tokens``, ``latency_pairs``, ``threads``: what the
      figures are stated for. Tokens are shortened to what the models take.
    - ``latency_float_bits``, ``latency_float_bits_dense``: width of the floats that each computes in: on a GPU those of
      its file (``Subject.shipped``), on a CPU 32.

    Args:
        batch: Number of sequences at once.
        tokens: Tokens of each prompt.
        new_tokens: Tokens decoded after the prompt.
        warmup: Requests of each model before the first that is timed.
        repeats: Number of pairs, at least 6.
        seconds: Time in seconds after which to stop, once there are 6 pairs.
        noisy_above: Spread of the baseline, p95 / p50, above which the figures are called noisy.
        crowded_above: Number of cores missing for the threads above which they are.
        seed: Seed of the random prompt.
    """

    directions: ClassVar[Mapping[str, Direction]] = {
        "latency_p*_ms": "min",
        "latency_ratio*": "min",
        "latency_noisy": "min",
        "prefill_tokens_per_s": "max",
        "decode_tokens_per_s": "max",
        "prefill_ratio*": "max",
        "decode_ratio*": "max",
    }
    compares: ClassVar[bool] = True

    def __init__(
        self,
        *,
        batch: int,
        tokens: int,
        new_tokens: int,
        warmup: int,
        repeats: int,
        seconds: float,
        noisy_above: float,
        crowded_above: float,
        seed: int,
    ) -> None:
        self.workload = Workload(batch=batch, tokens=tokens, new_tokens=new_tokens, seed=seed)
        if repeats < FEWEST_PAIRS:
            raise ValueError(f"repeats must be >= {FEWEST_PAIRS}, or the median has no 95 % interval; got {repeats}")
        if warmup < 1:
            raise ValueError(f"warmup must be >= 1 (the first request is never like the rest), got {warmup}")
        if seconds <= 0:
            raise ValueError(f"seconds must be > 0, got {seconds}")
        if noisy_above <= 1:
            raise ValueError(f"noisy_above is a p95 / p50 and must be > 1, got {noisy_above}")
        if crowded_above <= 0:
            raise ValueError(f"crowded_above is a number of cores and must be > 0, got {crowded_above}")
        self.warmup = warmup
        self.repeats = repeats
        self.seconds = seconds
        self.noisy_above = noisy_above
        self.crowded_above = crowded_above

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        same = baseline is subject
        subject = subject.shipped
        baseline = subject if same else baseline.shipped
        families = (subject.family, baseline.family)
        if families[0].device != families[1].device:
            raise ValueError(
                f"latency compares on one device, but the model is on {families[0].device} and its baseline on "
                f"{families[1].device}: put both on the same"
            )
        shape = self.workload.fitted(*families)
        with untouched(families[0].model, families[1].model, seed=shape.seed):
            before = _CpuClock.now()
            subject_times, dense_times = self._interleaved(subject, baseline, shape)
            others = _CpuClock.now().others_since(before)
        pairs = list(zip(subject_times, dense_times, strict=True))
        figures = {
            **_absolute(subject_times, shape, ""),
            **_absolute(dense_times, shape, "_dense"),
            **median_figures("latency_ratio", [a.total / b.total for a, b in pairs]),
            **median_figures("prefill_ratio", [b.prefill / a.prefill for a, b in pairs]),
        }
        if shape.new_tokens:
            figures |= median_figures("decode_ratio", [b.decode / a.decode for a, b in pairs])
        spread = figures["latency_p95_ms_dense"] / figures["latency_p50_ms_dense"]
        short = torch.get_num_threads() + others - _cores() if families[0].device.type == "cpu" else 0.0
        return {
            **figures,
            "latency_noisy": float(spread > self.noisy_above or short > self.crowded_above),
            "latency_others_cores": others,
            "latency_batch": float(shape.batch),
            "latency_tokens": float(shape.tokens),
            "latency_new_tokens": float(shape.new_tokens),
            "latency_pairs": float(len(pairs)),
            "latency_float_bits": float(8 * families[0].model.dtype.itemsize),
            "latency_float_bits_dense": float(8 * families[1].model.dtype.itemsize),
            "threads": float(torch.get_num_threads()),
        }

    def _interleaved(self, subject: Subject, baseline: Subject, shape: Workload) -> tuple[list[_Times], list[_Times]]:
        """Times of subject and baseline, pair by pair."""
        subject_runner = runner(subject.family, shape)
        same = baseline.family is subject.family  # its weights are stacked once
        baseline_runner = subject_runner if same else runner(baseline.family, shape)
        runners = [(subject_runner, shape.prompt(subject.family)), (baseline_runner, shape.prompt(baseline.family))]
        times: tuple[list[_Times], list[_Times]] = ([], [])
        start = time.perf_counter()
        for request, prompt in counted(runners * self.warmup, "first request"):
            _timed(request, prompt, shape.new_tokens)
        collecting = gc.isenabled()
        gc.disable()
        try:
            for pair in counted(range(self.repeats), "pair of requests"):
                for which in (0, 1) if pair % 2 == 0 else (1, 0):
                    request, prompt = runners[which]
                    times[which].append(_timed(request, prompt, shape.new_tokens))
                if pair + 1 >= FEWEST_PAIRS and time.perf_counter() - start > self.seconds:
                    break
        finally:
            if collecting:
                gc.enable()
        return times


def _timed(request: Runner, prompt: Tensor, new_tokens: int) -> _Times:
    start = _now(prompt.device)
    request.prefill(prompt)
    filled = _now(prompt.device)
    request.decode(new_tokens)
    return _Times(prefill=filled - start, decode=_now(prompt.device) - filled)


def _cores() -> int:
    return psutil.cpu_count() or 1


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _absolute(times: Sequence[_Times], shape: Workload, suffix: str) -> dict[str, float]:
    figures = {
        "latency_p50_ms": 1e3 * quantile([t.total for t in times], 0.50),
        "latency_p95_ms": 1e3 * quantile([t.total for t in times], 0.95),
        "prefill_tokens_per_s": shape.batch * shape.tokens / quantile([t.prefill for t in times], 0.5),
    }
    if shape.new_tokens:
        decoded = shape.batch * shape.new_tokens
        figures["decode_tokens_per_s"] = decoded / quantile([t.decode for t in times], 0.5)
    return {name + suffix: value for name, value in figures.items()}
