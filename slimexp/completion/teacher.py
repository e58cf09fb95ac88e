"""Targets that a teacher writes once, before training."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch

from slimexp.completion import store
from slimexp.completion.base import Completion, Writer
from slimexp.completion.filters import Filters
from slimexp.completion.generation import Decoding, generate_ids, is_finished
from slimexp.completion.store import Text
from slimexp.completion.training_rows import TrainingRows
from slimexp.data.base import Corpus
from slimexp.decode.kept import KeptDecoder
from slimexp.host import process_group
from slimexp.host.out_of_memory import halving
from slimexp.host.progress import counted, working
from slimexp.model.base import Family, by_length

Row = tuple[int, int, str]  # training row, epoch of its noise, and the text that the teacher reads

_REPLACED = "\ufffd"  # what decoding makes of bytes that are no character


class TeacherWritten(Completion):
    """Sequence-level distillation: the teacher's own texts are the targets.

    Its answer to a source is simpler to learn than the gold one: one mode of what it would say (Kim & Rush 2016,
    "Sequence-level knowledge distillation", section 3.2, by beams). A causal LM goes on after the first ``prompt``
    tokens of a training text, which is synthetic text to train on. The texts are on the disk under the digest of the
    teacher, of what it read and of how it wrote: later runs, and the trials of a sweep, read them. Nothing of the
    validation and test splits is read. As they are texts, student and teacher may have unlike tokenizers.

    Args:
        share: Share of the training rows that the teacher wrote, in (0, 1]; the others are gold.
        beams: Number of beams; 1 for none.
        temperature: Temperature of a draw; 0 for the likeliest.
        longest: Largest number of tokens that are written.
        prompt: Number of tokens of a causal LM's prompt; texts that are no longer are left out. Encoder-decoders ignore
            it.
        rows: Number of training rows that are read; ``None`` for all.
        epochs: How often each is read: with the noise of as many epochs, or as many draws.
        batch_size: Number of rows at once.
        seed: Seed of the choice of rows, and of draws.
        filters: Which texts are kept.
    """

    needs_teacher = True

    def __init__(
        self,
        *,
        share: float,
        beams: int,
        temperature: float,
        longest: int,
        prompt: int,
        rows: int | None,
        epochs: int,
        batch_size: int,
        seed: int,
        filters: Filters,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}: without completion all targets are gold")
        for name, value in {"prompt": prompt, "rows": rows, "epochs": epochs, "batch_size": batch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.share = share
        self.decoding = Decoding(temperature=temperature, beams=beams, longest=longest)
        self.prompt = prompt
        self.rows = rows
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.filters = filters

    def check(self, corpus: Corpus, max_length: int) -> None:
        super().check(corpus, max_length)
        if self.epochs > 1 and self.decoding.temperature == 0 and corpus.is_fixed:
            raise ValueError(
                f"epochs={self.epochs} asks for as many texts of a row, but the text of {type(corpus).__name__} is the "
                "same in every epoch and the likeliest answer too: set epochs=1, or a temperature > 0"
            )
        if self.filters.worst_cer is not None and corpus.task == "causal_lm":
            raise ValueError(
                f"filters.worst_cer={self.filters.worst_cer} is an error rate against gold targets, and text of the "
                "task causal_lm has none: set it to null"
            )

    def write(self, corpus: Corpus, writer: Writer, folder: Path, about: str) -> Path:
        read = self._read(corpus)
        path = folder / f"{self._key(read, corpus, about)}.jsonl"
        store.write(path, lambda: self._written(read, writer))
        return path

    def corpus(self, corpus: Corpus, path: Path) -> Corpus:
        texts = store.read(path)
        kept, dropped = self.filters.kept(texts, corpus)
        reasons = ", ".join(f"{count} {name}" for name, count in dropped.items() if count)
        if process_group.is_first():
            left_out = f", without {reasons}" if reasons else ""
            print(f"  {len(kept)} of {len(texts)} texts of the teacher are learned from{left_out}: {path}", flush=True)
        if not kept:
            raise ValueError(
                f"no text that the teacher wrote is fit to be learned from ({reasons or 'none was written'}): set "
                "completion.filters, longest or prompt otherwise"
            )
        return TrainingRows(corpus, kept, share=self.share, seed=self.seed)

    def _read(self, corpus: Corpus) -> list[Row]:
        """What the teacher reads, of the training split alone."""
        count = len(corpus.splits["train"])
        chosen = sorted(Random(self.seed).sample(range(count), min(self.rows or count, count)))
        return [
            (row, epoch, corpus.training_example(row, epoch).source) for epoch in range(self.epochs) for row in chosen
        ]

    def _key(self, read: list[Row], corpus: Corpus, about: str) -> str:
        """Digest of all that the texts depend on."""
        settings = {**asdict(self.decoding), "prompt": self.prompt, "seed": self.seed, "task": corpus.task}
        if self.decoding.temperature > 0:
            settings["batch_size"] = self.batch_size  # of every batch there is one draw
        hasher = hashlib.sha256(json.dumps([about, settings], sort_keys=True).encode())
        for row in read:
            hasher.update(repr(row).encode(errors="replace"))
        return hasher.hexdigest()[:16]

    def _written(self, read: list[Row], writer: Writer) -> list[Text]:
        with working("the teacher writes"), writer() as family, KeptDecoder() as kept:

            def write(batch_size: int) -> list[Text]:
                kept.release()  # what did not fit
                return list(self._texts(read, family, batch_size, kept))

            return halving(write, self.batch_size, "completion.batch_size")

    def _texts(self, read: list[Row], family: Family, batch_size: int, kept: KeptDecoder) -> Iterator[Text]:
        """Texts in the order of what was read."""
        answer = self._answers if family.task == "seq2seq" else self._continuations
        texts = {text: None for batch in answer(read, family, batch_size, kept) for text in batch}
        yield from sorted(texts, key=lambda text: (text.epoch, text.row))

    def _answers(self, read: list[Row], family: Family, batch_size: int, kept: KeptDecoder) -> Iterator[list[Text]]:
        decoding = self.decoding.within(family.max_length)
        chunks = list(by_length([source for *_, source in read], batch_size))
        for number, chunk in enumerate(counted(chunks, "batch")):
            ids, mask = family.pad(family.token_ids([read[i][2] for i in chunk]))
            answers = generate_ids(family, ids, mask, decoding, [self.seed, number], kept)
            texts = family.tokenizer.batch_decode(answers, skip_special_tokens=True)
            yield [
                Text(*read[i], text, is_finished(answer, family))
                for i, text, answer in zip(chunk, texts, answers, strict=True)
            ]

    def _continuations(
        self, read: list[Row], family: Family, batch_size: int, kept: KeptDecoder
    ) -> Iterator[list[Text]]:
        ids = family.token_ids([source for *_, source in read], truncate=False)
        long = [i for i in range(len(read)) if len(ids[i]) > self.prompt]
        decoding = self.decoding.within(family.max_length - self.prompt)
        chunks = [long[start : start + batch_size] for start in range(0, len(long), batch_size)]
        for number, chunk in enumerate(counted(chunks, "batch")):
            prompts = torch.tensor([ids[i][: self.prompt] for i in chunk])
            answers = generate_ids(family, prompts, torch.ones_like(prompts), decoding, [self.seed, number], kept)
            yield [
                Text(*read[i][:2], *_split(family, ids[i][: self.prompt], answer), is_finished(answer, family))
                for i, answer in zip(chunk, answers, strict=True)
            ]


def _split(family: Family, prompt: list[int], answer: list[int]) -> tuple[str, str]:
    """Texts of a prompt and of what follows it; half a character at the end is left out."""
    before = str(family.tokenizer.decode(prompt, skip_special_tokens=True)).rstrip(_REPLACED)
    whole = str(family.tokenizer.decode([*prompt, *answer], skip_special_tokens=True)).rstrip(_REPLACED)
    return (before, whole[len(before) :]) if whole.startswith(before) else ("", whole)
