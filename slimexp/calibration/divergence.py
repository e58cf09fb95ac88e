"""Divergence of a model's output distributions from those that it had before its weights were changed."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimexp.calibration.observe import undisturbed
from slimexp.calibration.replay import Replay
from slimexp.host.progress import counted
from slimexp.loss.base import IGNORE
from slimexp.model.base import Batch, Family

_ANSWERS = 2**27  # log-probabilities: 512 MB of float32, 2,700 tokens of a vocabulary of 49k


class Divergence:
    """Forward Kullback-Leibler divergence per real token from the model's answers at the start to those at a call.

    Where the loss may fall by chance as a layer is changed, this cannot fall below zero, and near the start it is the
    curvature of the loss alone (``d F d / 2`` for a small change d, F being Fisher's information of the model's own
    answers): few rows of text do.

    Args:
        family: The model, whose present answers are the reference.
        batches: Text, on any device. The reference answers are held on the model's device, so that of a large
            vocabulary at most ``_ANSWERS`` log-probabilities are compared, at tokens spread evenly over the text.
        blockwise: Whether calls will name the first block that changed.

    Raises:
        ValueError: An answer is not finite.
    """

    def __init__(self, family: Family, batches: Iterable[Batch], *, blockwise: bool = False) -> None:
        self.family = family
        moved = ({name: tensor.to(family.device) for name, tensor in batch.items()} for batch in batches)
        self.batches = [part for batch in moved for part in self._split(batch)]
        self._every = self._thinned()
        self.before = [self._answers(batch) for batch in counted(self.batches, "reference answer")]
        for index, answers in enumerate(self.before):
            if not answers.isfinite().all():
                raise ValueError(f"the model answers with NaN or infinity in calibration batch {index}")
        self._replay = self._replaying() if blockwise else None

    def __call__(self, *, since: nn.Module | None = None) -> float:
        """Divergence of the model as it stands from the reference, in nats per token.

        Args:
            since: The first block that changed, where no weight outside the blocks did: those before it need not run.
        """
        total = 0.0
        for index, (batch, before) in enumerate(zip(self.batches, self.before, strict=True)):
            with nullcontext() if self._replay is None else self._replay.behind(since, index):
                total += F.kl_div(self._answers(batch), before, log_target=True, reduction="sum").item()
        return max(total, 0.0) / max(sum(len(before) for before in self.before), 1)

    def _replaying(self) -> Replay | None:
        """Replay of blocks; ``None`` where they pass each other more than they return."""
        replay = Replay(self.family)
        for blocks in self.family.blocks().values():
            for _ in range(2):  # the first time the outputs are kept
                with replay.behind(blocks[-1], 0):
                    try:
                        answers = self._answers(self.batches[0])
                    except Exception:  # what a block would have left for another is not there
                        return None
            if not torch.equal(answers, self.before[0]):
                return None
        return replay

    @torch.no_grad()
    def _answers(self, batch: Batch) -> Tensor:
        """Log-probabilities at the N tokens whose label counts, [N, vocabulary]."""
        with undisturbed(self.family):
            logits = self.family.forward(batch)[0]
        return logits[batch["labels"] != IGNORE][:: self._every].float().log_softmax(-1)

    def _split(self, batch: Batch) -> Iterator[Batch]:
        """The rows of a batch, so many at once that their logits fit in memory."""
        rows = len(batch["labels"])
        at_once = self.family.rows_at_once(batch["labels"].shape[-1], rows)
        for start in range(0, rows, at_once):
            yield {name: tensor[start : start + at_once] for name, tensor in batch.items()}

    def _thinned(self) -> int:
        """Which token of how many is compared."""
        head = self.family.model.get_output_embeddings()
        vocabulary = 1 if head is None else head.weight.shape[0]
        tokens = sum(int((batch["labels"] != IGNORE).sum()) for batch in self.batches)
        return max(1, -(-tokens * vocabulary // _ANSWERS))
