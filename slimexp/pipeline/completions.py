"""The text that a stage is trained on where a teacher writes it: once for all runs of a folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from slimexp.calibration.observe import visiting
from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.model.base import Family
from slimexp.model.serving import weights_digest
from slimexp.technique.finetune import Finetune

FOLDER = "completions"  # in a runs folder


def corpus_of(
    technique: Finetune,
    corpus: Corpus,
    *,
    teacher: Callable[[], Family],
    reference: Path,
    runs: Path,
    code: str,
    device: torch.device,
) -> Corpus:
    """The corpus that a stage is trained on: that of the run, or one with a teacher's texts.

    Args:
        technique: Technique of the stage.
        corpus: The corpus of the run.
        teacher: Loads the stage's teacher.
        reference: Artifact of the dense model, which is the teacher where the technique names none.
        runs: Folder of the runs that share what is written.
        code: Digest of the code that writes.
        device: Device that computes.
    """
    completion = technique.completion
    if completion is None or not completion.needs_teacher:
        return corpus

    @contextmanager
    def writer() -> Iterator[Family]:
        family = teacher()
        with visiting(family.model, device):
            yield family

    about = f"{_weights(technique, reference)} {code}"
    path = process_group.by_first(lambda: completion.write(corpus, writer, runs / FOLDER, about))
    assert path is not None
    return completion.corpus(corpus, path)


def _weights(technique: Finetune, reference: Path) -> str:
    """What tells the teacher from others: its weights, and how much it reads."""
    source = technique.teacher
    return weights_digest(reference) if source is None else f"{source.fingerprint()} {source.max_length}"
