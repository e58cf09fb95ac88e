"""How fast an engine computes an export, beside PyTorch in the same minute on as many threads."""

import gc
import time
from collections.abc import Callable

import torch

from slimexp.format.base import Artifact, Plain, Running
from slimexp.host.progress import counted
from slimexp.measure.interval import FEWEST_PAIRS, median_figures, quantile
from slimexp.measure.workload import Request, Workload

_SHAPE = Workload(batch=1, tokens=32, new_tokens=32, seed=0)
_MOST_PAIRS = 20
_SECONDS = 10.0  # of each comparison, once there are FEWEST_PAIRS


def speed(model: Artifact, running: Running) -> dict[str, float]:
    """Figures of an engine, beside plain transformers in float32 on the CPU.

    Where the artifact rounds activations, transformers only emulates it, which takes several times as long as not to
    round: the engine is held against float32 without rounding.

    The two take turns (A B, B A, ...), and each pair gives a ratio. Figures:

    - ``forward_ms``, ``forward_ms_pytorch``: a pass over one row, which gives the logits of all its tokens;
      ``forward_ratio``: engine / PyTorch, below 1 where the engine is faster.
    - ``tokens_per_s``, ``tokens_per_s_pytorch``: of an answer, the reading of its prompt included, greedily and with
      what was computed of earlier tokens kept; ``tokens_ratio``: engine / PyTorch, above 1 where the engine is faster.
      Only where the engine decodes so.
    - ``prompt_tokens``, ``new_tokens``, ``threads``: what they are stated for.

    All are medians; ratios and figures of the engine with ``_low`` and ``_high`` of their 95 % interval.

    Args:
        model: The artifact.
        running: Its export, loaded by the engine.
    """
    family = type(model.family)(model.unrounded, model.family.tokenizer, max_length=model.family.max_length)
    shape = _SHAPE.fitted(family)
    prompt = shape.prompt(family)
    source: list[int] = prompt[0].tolist()
    start = [family.model.config.decoder_start_token_id] if model.task == "seq2seq" else []
    plain, request = Plain(family.model), Request(family)

    @torch.inference_mode()
    def answer() -> None:
        request.prefill(prompt)
        request.decode(shape.new_tokens - 1)

    figures = {"prompt_tokens": float(shape.tokens), "threads": float(torch.get_num_threads())}
    engine, other = _interleaved(lambda: running.logits(source, start), lambda: plain.logits(source, start))
    figures |= median_figures("forward_ms", [1e3 * one for one in engine])
    figures |= {"forward_ms_pytorch": 1e3 * quantile(other, 0.5)}
    figures |= median_figures("forward_ratio", [a / b for a, b in zip(engine, other, strict=True)])
    if running.decodes and shape.new_tokens:
        engine, other = _interleaved(lambda: running.greedy(source, start, shape.new_tokens), answer)
        figures |= {
            "new_tokens": float(shape.new_tokens),
            **median_figures("tokens_per_s", [shape.new_tokens / one for one in engine]),
            "tokens_per_s_pytorch": shape.new_tokens / quantile(other, 0.5),
            **median_figures("tokens_ratio", [b / a for a, b in zip(engine, other, strict=True)]),
        }
    return figures


def _interleaved(one: Callable[[], object], other: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of both, pair by pair; the first pair warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (one, other):
        call()
    start, collecting = time.perf_counter(), gc.isenabled()
    gc.disable()
    try:
        for pair in counted(range(_MOST_PAIRS), "pair of passes"):
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                began = time.perf_counter()
                (one, other)[which]()
                times[which].append(time.perf_counter() - began)
            if pair + 1 >= FEWEST_PAIRS and time.perf_counter() - start > _SECONDS:
                break
    finally:
        if collecting:
            gc.enable()
    return times
