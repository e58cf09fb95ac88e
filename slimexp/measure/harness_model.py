"""A language model as lm-evaluation-harness calls it, which computes the logits of answers and no others."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from slimexp.host.progress import Work, reporter
from slimexp.model.base import Family
from slimexp.model.causal_lm import keeps_some, token_nats

Request = tuple[Any, list[int], list[int]]  # texts, ids of the context, ids of the answer


class HarnessModel(HFLM):
    """A family's model. Answers to one question lie in one batch: their logits are at the same positions.

    The harness itself computes the logits of contexts too, and a copy of all of them as log-probabilities in float32:
    of a vocabulary of 49k most of the time goes into memory.

    Args:
        family: The model with its tokenizer.
        options: Further arguments of ``HFLM``.
    """

    cache_hook: CacheHook

    def __init__(self, family: Family, **options: Any) -> None:
        super().__init__(
            pretrained=family.model,
            trust_remote_code=False,
            tokenizer=family.tokenizer,
            max_length=family.max_length,
            **options,
        )
        self._family = family

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self._counted("loglikelihood", len(requests)):
            scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return scores

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        with self._counted("generate_until", len(requests)):
            texts: list[str] = super().generate_until(requests, disable_tqdm)
        return texts

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Scores of whole texts, a batch of them at a time: the harness reads all windows before one text is done."""
        scores: list[float] = []
        with self._counted("loglikelihood_rolling", len(requests)):
            for start in range(0, len(requests), self.batch_size):
                scores += super().loglikelihood_rolling(requests[start : start + self.batch_size], disable_tqdm)
        return scores

    @contextmanager
    def _counted(self, kind: str, total: int) -> Iterator[None]:
        """Progress over requests of a kind: the harness tells its cache of every one that is done."""
        work = reporter.begin("request", total)
        hook, self.cache_hook = self.cache_hook, _Done(self.cache_hook, kind, work)
        try:
            yield
        finally:
            self.cache_hook = hook
            reporter.end(work)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self.backend != "causal":
            scores: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return scores
        return self._scores(requests, self.batch_size)

    @torch.inference_mode()
    def _scores(self, requests: Sequence[Request], batch_size: int) -> list[tuple[float, bool]]:
        """Log-likelihood of each answer, and whether each of its tokens is the likeliest."""
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for chunk in self._batches(requests, batch_size):
            rows = [self._row(requests[i]) for i in chunk]
            ids, mask = self._family.pad([tokens[:-1] for tokens, _ in rows])
            labels, real = self._labels(rows, ids.shape[1])
            kept = real.any(0).nonzero().flatten()
            logits = self._logits(ids.to(self.device), mask.to(self.device), kept.to(self.device))
            labels, real = labels[:, kept].to(self.device), real[:, kept].to(self.device)
            nats = (token_nats(logits, labels) * real).sum(1).tolist()
            greedy = ((logits.argmax(-1) == labels) | ~real).all(1).tolist()
            for i, loss, is_greedy in zip(chunk, nats, greedy, strict=True):
                scores[i] = (-loss, is_greedy)
                self.cache_hook.add_partial("loglikelihood", requests[i][0], scores[i])
        return scores

    def _batches(self, requests: Sequence[Request], batch_size: int) -> Iterator[list[int]]:
        """Indices in batches of like length, longest first, answers to one question side by side.

        A batch ends where its logits, from the first token of an answer to the last, would be too large.
        """
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i][1]), requests[i][1]), reverse=True)
        batch: list[int] = []
        some, first, last = keeps_some(self.model), self.max_length, 0
        for i in order:
            start = len(requests[i][1]) if some else 0
            end = len(requests[i][1]) + len(requests[i][2])
            span = max(last, end) - min(first, start)
            if batch and len(batch) >= self._family.rows_at_once(span, batch_size):
                yield batch
                batch, first, last = [], self.max_length, 0
            batch.append(i)
            first, last = min(first, start), max(last, end)
        if batch:
            yield batch

    def _row(self, request: Request) -> tuple[list[int], int]:
        """The last tokens of context and answer that the model has positions for, and the number of the answer's."""
        _, context, answer = request
        return (context + answer)[-(self.max_length + 1) :], len(answer)

    def _labels(self, rows: Sequence[tuple[list[int], int]], width: int) -> tuple[Tensor, Tensor]:
        """The token after each position [B, T], and whether it belongs to an answer."""
        labels, real = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
        for row, (tokens, answer) in enumerate(rows):
            labels[row, : len(tokens) - 1] = torch.tensor(tokens[1:])
            real[row, len(tokens) - 1 - answer : len(tokens) - 1] = True
        return labels, real

    def _logits(self, ids: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        """Logits [B, K, V] at the positions ``kept`` [K]."""
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if keeps_some(self.model):
            logits: Tensor = self.model(**inputs, logits_to_keep=kept).logits
            return logits
        return self.model(**inputs).logits[:, kept]


class _Done(CacheHook):
    """The harness's cache of answers, which counts those of a kind besides."""

    def __init__(self, cache: CacheHook, kind: str, work: Work) -> None:
        self._cache, self._kind, self._work = cache, kind, work

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self._work.done += attr == self._kind
        self._cache.add_partial(attr, req, res)
