"""A language model as lm-evaluation-harness calls it: the harness's own scores, whatever the batch."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from slimexp.host.progress import Work, reporter
from slimexp.model.base import Family
from slimexp.model.causal_lm import keeps_some

# Rows of a matrix from which a product gives each row the same bits, however many there are: for fewer, BLAS has other
# kernels (seen with MKL 2024.2: below 4 rows on one thread, below 12 on two).
_ENOUGH = 16

Request = tuple[Any, list[int], list[int]]  # texts, ids of the context, ids of the answer


class HarnessModel(HFLM):
    """A family's model, whose scores are those of the harness's own ``HFLM`` with a batch of one.

    A score depends on the request alone. Padding would change its last digits, because attention adds up more terms in
    another order; so a batch holds requests of equal lengths, and nothing is padded. In float32 on a CPU the scores are
    then the same bits for every batch size and order of requests. On a GPU, whose library chooses kernels by the size
    of the batch, they agree within rounding, and so do texts that are generated, unless two tokens are equally likely.

    Of a causal model only the logits of answers are computed. The harness itself computes those of contexts too, and a
    copy of all of them as log-probabilities: of a vocabulary of 49k most of the time goes into memory.

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
            return _in_groups(
                requests,
                by=lambda request: len(self.tok_encode(request.args[0])),
                score=lambda group: super(HarnessModel, self).generate_until(group, disable_tqdm),
            )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that do not overlap; windows of all texts are read together."""
        windows: list[Request] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            of_text = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += of_text
            owners += [i] * len(of_text)
        totals = [0.0] * len(requests)
        with self._counted("loglikelihood", len(windows)) as work:
            for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
                totals[owner] += score
            work.done = len(windows)  # the harness tells of none of its own
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @contextmanager
    def _counted(self, kind: str, total: int) -> Iterator[Work]:
        """Progress over requests of a kind: the harness tells its cache of every one that is done."""
        work = reporter.begin("request", total)
        hook, self.cache_hook = self.cache_hook, _Done(self.cache_hook, kind, work)
        try:
            yield work
        finally:
            self.cache_hook = hook
            reporter.end(work)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each answer, and whether each of its tokens is the likeliest."""
        if self.backend == "causal":
            return _in_groups(requests, by=lambda request: len(self._row(request)), score=self._causal_scores)
        return _in_groups(
            requests,
            by=lambda request: (min(len(request[1]), self.max_length), min(len(request[2]), self.max_length)),
            score=self._encoded_scores,
        )

    def _encoded_scores(self, group: list[Request]) -> list[tuple[float, bool]]:
        """Scores of requests of equal lengths, by the harness; where few rows would be multiplied, one by one."""
        _, context, answer = group[0]
        at_once = self.batch_size if min(len(context), len(answer)) >= _ENOUGH else 1
        scores: list[tuple[float, bool]] = []
        for start in range(0, len(group), at_once):
            scores += super()._loglikelihood_tokens(group[start : start + at_once], True)
        return scores

    @torch.inference_mode()
    def _causal_scores(self, group: list[Request]) -> list[tuple[float, bool]]:
        """Scores of requests whose rows have equal lengths, with logits from the longest answer's first token on."""
        order = sorted(range(len(group)), key=lambda i: group[i][1])  # answers to one question side by side
        width = len(self._row(group[0]))
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(group)
        kept = max(_ENOUGH, *(len(answer) for _, _, answer in group)) if keeps_some(self.model) else width
        at_once = self._family.rows_at_once(min(kept, width), self.batch_size) if width >= _ENOUGH else 1
        for start in range(0, len(order), at_once):
            batch = order[start : start + at_once]
            ids = torch.tensor([self._row(group[i]) for i in batch], device=self.device)
            for i, logits in zip(batch, self._logits(ids, min(kept, width)), strict=True):
                scores[i] = self._score(logits, group[i][2])
                self.cache_hook.add_partial("loglikelihood", group[i][0], scores[i])
        return scores

    def _row(self, request: Request) -> list[int]:
        """What the model reads: the last tokens that it has positions for, but for the last of all."""
        _, context, answer = request
        return (context + answer)[-(self.max_length + 1) : -1]

    def _logits(self, ids: Tensor, kept: int) -> Tensor:
        """Logits [B, K, V] at the last ``kept`` positions of rows [B, T] without padding."""
        if keeps_some(self.model):
            logits: Tensor = self.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
            return logits
        return self.model(input_ids=ids, use_cache=False).logits[:, -kept:]

    def _score(self, logits: Tensor, answer: list[int]) -> tuple[float, bool]:
        """Score of an answer by the last of the logits [K, V], in the harness's own type and order of summation."""
        likelihoods = torch.log_softmax(logits[-len(answer) :], dim=-1, dtype=self.softmax_dtype)
        labels = torch.tensor(answer, device=logits.device)
        return float(likelihoods.gather(1, labels[:, None]).sum()), bool((likelihoods.argmax(-1) == labels).all())


def _in_groups(requests: Sequence[Any], *, by: Callable[[Any], Any], score: Callable[[list[Any]], list[Any]]) -> Any:
    """Scores of requests, which are scored in groups that are equal in ``by``, the largest first."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        groups[by(request)].append(i)
    scores: list[Any] = [None] * len(requests)
    for key in sorted(groups, reverse=True):  # a batch that does not fit does not fit at once
        scored = score([requests[i] for i in groups[key]])
        for i, one in zip(groups[key], scored, strict=True):
            scores[i] = one
    return scores


class _Done(CacheHook):
    """The harness's cache of answers, which counts those of a kind besides."""

    def __init__(self, cache: CacheHook, kind: str, work: Work) -> None:
        self._cache, self._kind, self._work = cache, kind, work

    def add_partial(self, attr: str, req: Iterable[Any] | None, res: Any) -> None:
        self._work.done += attr == self._kind
        if req is not None:  # it is None for a window of a text
            self._cache.add_partial(attr, req, res)
