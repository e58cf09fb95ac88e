"""The text that a stage is trained on where a teacher writes it: once for all runs of a folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from slimexp import artifact
from slimexp.calibration.observe import visiting
from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.model.base import Family
from slimexp.model.serving import weights_digest
from slimexp.record import removal
from slimexp.technique.finetune import Finetune

FOLDER = removal.COMPLETIONS


def corpus_of(
    technique: Finetune,
    corpus: Corpus,
    *,
    teacher: Callable[[], Family],
    reference: Path,
    runs: Path,
    code: str,
    device: torch.device,
    keep_type: bool,
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
        keep_type: Whether the teacher computes in the type that it is stored in, and not in float32.
    """
    completion = technique.completion
    if completion is None or not completion.needs_teacher:
        return corpus

    @contextmanager
    def writer() -> Iterator[Family]:
        family = teacher()
        with visiting(family.model, device):
            yield family

    about = f"{_identity(technique, reference)} {'stored' if keep_type else 'float32'} {code}"
    path = process_group.by_first(lambda: completion.write(corpus, writer, runs / FOLDER, about))
    assert path is not None
    return completion.corpus(corpus, path)


def _identity(technique: Finetune, reference: Path) -> str:
    """What tells the teacher from others, without loading it: its files, and how much it reads."""
    if (source := technique.teacher) is not None:
        return f"{source.fingerprint()} {source.max_length}"
    return f"{weights_digest(reference)} {artifact.read_manifest(reference)['max_length']}"
