"""Targets that the student writes while it is trained."""

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from slimexp.completion.base import WRITTEN, Completion
from slimexp.completion.generation import Decoding, decoder_start_id, generate_ids
from slimexp.decode.kept import KeptDecoder
from slimexp.host import process_group
from slimexp.loss.base import IGNORE, Loss
from slimexp.model.base import Batch, Family
from slimexp.model.seq2seq import Seq2Seq
from slimexp.schedule import Schedule


class StudentWritten(Completion):
    """On-policy distillation: of some batches the student writes the targets, and the teacher says how likely they are.

    A student that is trained on gold text never sees its own mistakes, with which it must go on when it writes. Here
    it reads what it has written, and learns there what the teacher would have said next (Agarwal et al. 2024,
    "On-policy distillation of language models" (GKD), algorithm 1): with probability ``share`` a batch is written by
    the student as it stands, without a gradient through the draw; else it has its gold targets. Losses that read a
    teacher learn from both. A loss that reads none learns the labels themselves, and counts 0 in written batches, whose
    labels are no truth.

    For a source, the text is the target; a causal LM goes on after the first tokens of a row's longest document,
    ``prompt`` of them, or as many as leave room in the shortest. Of a prompt nothing is learned.

    Args:
        share: Probability that a batch is written, as a function of training progress, in [0, 1].
        temperature: Temperature of the draw; 0 takes the likeliest token.
        longest: Largest number of tokens that are written.
        prompt: Largest number of tokens of a prompt; encoder-decoders ignore it.
    """

    on_policy = True

    def __init__(self, *, share: Schedule, temperature: float, longest: int, prompt: int) -> None:
        for progress in (0.0, 1.0):
            if not 0 <= share(progress) <= 1:
                raise ValueError(f"share must stay in [0, 1], got {share(progress)} at progress {progress:g}")
        if prompt < 1:
            raise ValueError(f"prompt must be >= 1 token, got {prompt}")
        self.share = share
        self.decoding = Decoding(temperature=temperature, beams=1, longest=longest)
        self.prompt = prompt
        self._kept = KeptDecoder(least=prompt + longest)  # of one length, so that a resumed run draws the same

    def check_losses(self, losses: Collection[Loss]) -> None:
        if not any(loss.needs_teacher for loss in losses):
            raise ValueError(
                "a student learns from its own text what its teacher says there, and no loss reads a teacher: add one "
                "that does, e.g. +loss@pipeline.<stage>.losses.kl=kl"
            )

    def writes(self, *, seed: int, number: int, progress: float) -> bool:
        drawn: float = np.random.default_rng([seed, number]).random()  # the same on all devices
        return drawn < self.share(progress)

    def batch(self, batch: Batch, family: Family, *, seed: int, number: int, progress: float, multiple: int) -> Batch:
        rows = len(batch["labels"])
        if not self.writes(seed=seed, number=number, progress=progress):
            return {**batch, WRITTEN: torch.zeros(rows)}
        draw = [seed, number, process_group.rank()]
        own = self._targets if family.task == "seq2seq" else self._documents
        return {**own(batch, family, draw, multiple), WRITTEN: torch.ones(rows)}

    def release(self) -> None:
        self._kept.release()

    def scheduled(self, progress: float) -> dict[str, float]:
        return {"written_share": self.share(progress)}

    def _targets(self, batch: Batch, family: Family, draw: list[int], multiple: int) -> Batch:
        """The batch with other targets of its sources."""
        decoding = self.decoding.within(family.max_length)
        texts = generate_ids(family, batch["input_ids"], batch["attention_mask"], decoding, draw)
        ids, real = family.pad(texts, multiple)
        labels = ids.masked_fill(real == 0, IGNORE)
        check_beginning(family, labels)
        return {**batch, "labels": labels}

    def _documents(self, batch: Batch, family: Family, draw: list[int], multiple: int) -> Batch:
        """A batch of texts that go on after prompts from this one, one a row."""
        given = prompts(batch, self.prompt)
        length = given.shape[1]
        decoding = self.decoding.within(family.max_length - length)
        texts = generate_ids(family, given, torch.ones_like(given), decoding, draw, self._kept)
        rows = [[*prompt, *text] for prompt, text in zip(given.tolist(), texts, strict=True)]
        ids, real = family.pad(rows, multiple)
        labels = torch.full_like(ids, IGNORE)
        labels[:, :-1] = ids[:, 1:].masked_fill(real[:, 1:] == 0, IGNORE)
        labels[:, : length - 1] = IGNORE
        return {"input_ids": ids, "attention_mask": real, "labels": labels}


def check_beginning(family: Family, labels: Tensor) -> None:
    """Refuse a decoder that begins to write from another token than it is trained to begin from.

    Raises:
        ValueError: mBART's does: the language comes first in one case, and in the other the end of the text.
    """
    assert isinstance(family, Seq2Seq)
    trained = family.decoder_inputs(labels)[:, 0]
    if any(start != decoder_start_id(family.model) for start in trained.tolist()):
        raise ValueError(
            f"{type(family.model).__name__} begins to write from another token than it is trained from, so that its "
            "own text is no target: have the teacher write (completion=teacher)"
        )


def prompts(batch: Batch, longest: int) -> Tensor:
    """First tokens of the longest document of each row, [B, P]: ``longest`` of them, or all but one of the shortest.

    Args:
        batch: Rows of a causal LM; ``position_ids``, where they hold several documents, start each at 0.
        longest: Largest P.
    """
    spans = [_longest_document(batch, row) for row in range(len(batch["input_ids"]))]
    length = max(1, min(longest, *(end - start - 1 for start, end in spans)))
    return torch.stack([batch["input_ids"][row, start : start + length] for row, (start, _) in enumerate(spans)])


def _longest_document(batch: Batch, row: int) -> tuple[int, int]:
    """Start and end of the longest document of a row."""
    end = int(batch["attention_mask"][row].sum())
    if "position_ids" not in batch:
        return 0, end
    starts = (batch["position_ids"][row, :end] == 0).nonzero().flatten().tolist()
    return max(zip(starts, [*starts[1:], end], strict=True), key=lambda span: span[1] - span[0])
