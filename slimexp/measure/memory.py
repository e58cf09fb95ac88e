"""Peak memory of serving.

Run as a module it is the fresh process that ``Memory`` starts on a CPU:
``python -m slimexp.measure.memory FOLDER TASK MAX_LENGTH BATCH TOKENS NEW_TOKENS SEED THREADS``.
"""

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

from slimexp.data.base import Corpus, Direction
from slimexp.measure.base import Measure, Subject, untouched
from slimexp.measure.resident import MB, plain_tensors, resident_bytes
from slimexp.measure.workload import Request, Workload
from slimexp.model.base import Family
from slimexp.model.cache import bytes_per_token

_RESET = Path("/proc/self/clear_refs")


class Memory(Measure):
    """``peak_mb``: most memory that the weights and one request take together (1 MB = 10^6 bytes).
    ``cache_bytes_per_token``: bytes that self-attention caches of every token of a sequence, where a model decodes.

    On CUDA, in the type of the file (``Subject.shipped``): the parameters and buffers, and the peak of the allocator
    above its level before. The request is served without CUDA graphs and with a cache that grows, where ``Latency`` may
    time it with both: a graph holds its buffers and a cache of full length, which are not counted.

    On a CPU: growth of the resident set in a fresh process that loads the folder and serves the request
    (this process has the peak of training behind it). The process does so twice and is measured the second
    time, when libraries are loaded and thread pools exist; freed memory goes back to the system in between.
    ``VmHWM`` of Linux is read and not ``ru_maxrss``, which a child inherits from its parent. All weights are
    read before: they are mapped from their file, and rows of an embedding that the request does not touch
    would not count.

    Args:
        batch: Number of sequences at once.
        tokens: Tokens of each prompt; shortened to what the model takes.
        new_tokens: Tokens decoded after the prompt.
        seed: Seed of the random prompt.
        timeout_s: Longest time in seconds that the fresh process may take.
    """

    directions: ClassVar[Mapping[str, Direction]] = {"peak_mb": "min", "cache_bytes_per_token": "min"}

    def __init__(self, *, batch: int, tokens: int, new_tokens: int, seed: int, timeout_s: float) -> None:
        self.workload = Workload(batch=batch, tokens=tokens, new_tokens=new_tokens, seed=seed)
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be > 0, got {timeout_s}")
        self.timeout_s = timeout_s

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        subject = subject.shipped
        shape = self.workload.fitted(subject.family)
        cache_bytes = _cache_bytes(subject.family, shape)
        on_cuda = subject.family.device.type == "cuda"
        peak = _cuda_peak(subject, shape) if on_cuda else self._fresh_peak(subject, shape)
        return {"peak_mb": peak / MB, **({"cache_bytes_per_token": cache_bytes} if cache_bytes else {})}

    def _fresh_peak(self, subject: Subject, shape: Workload) -> int:
        if not _RESET.exists():
            raise ValueError("peak memory on a CPU is read from Linux's /proc, which is not here: drop measure.memory")
        family = subject.family
        numbers = (family.max_length, shape.batch, shape.tokens, shape.new_tokens, shape.seed, torch.get_num_threads())
        command = [sys.executable, "-m", __spec__.name, str(subject.folder.resolve()), family.task, *map(str, numbers)]
        # A fixed threshold: otherwise glibc raises it and keeps what was freed. PYTHONPATH: slimexp may come
        # from a checkout that only this process knows.
        settings = {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",
        }
        try:
            process = subprocess.run(
                command, env=os.environ | settings, capture_output=True, text=True, timeout=self.timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"{subject.folder} took over {self.timeout_s:g} s in a fresh process: raise measure.memory.timeout_s"
            ) from error
        if process.returncode:
            last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ValueError(f"{subject.folder} cannot be loaded and run in a fresh process: {last}")
        return int(process.stdout.split()[-1])


def _cache_bytes(family: Family, shape: Workload) -> float:
    """Bytes that self-attention caches of a token; 0 where it caches nothing."""
    with untouched(family.model, seed=shape.seed):
        request = Request(family)
        request.prefill(replace(shape, tokens=min(shape.tokens, 8)).prompt(family))
        return 0.0 if request.cache is None else bytes_per_token(request.cache)


def _cuda_peak(subject: Subject, shape: Workload) -> int:
    family, device = subject.family, subject.family.device
    with untouched(family.model, seed=shape.seed):
        _serve(family, shape)  # kernels take their workspaces at first use; packed weights unpack
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _serve(family, shape)
        torch.cuda.synchronize(device)
        return resident_bytes(family.model) + torch.cuda.max_memory_allocated(device) - before


def _serve(family: Family, shape: Workload) -> None:
    request = Request(family)
    request.prefill(shape.prompt(family))
    request.decode(shape.new_tokens)


def _resident(peak: bool) -> int:
    """Bytes of this process in memory, now or at most since the peak was reset."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _main(folder: str, task: str, *numbers: str) -> None:
    from slimexp.model.serving import served

    max_length, batch, tokens, new_tokens, seed, threads = map(int, numbers)
    torch.set_num_threads(threads)
    shape = Workload(batch=batch, tokens=tokens, new_tokens=new_tokens, seed=seed)
    for _ in range(2):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # reset the peak
        before = _resident(peak=False)
        with torch.no_grad():
            family = served(folder, task, max_length)
            for tensor in plain_tensors(family.model):
                torch.count_nonzero(tensor)
            _serve(family, shape)
        growth = _resident(peak=True) - before
        del family, tensor
    print(growth)


if __name__ == "__main__":
    _main(*sys.argv[1:])
