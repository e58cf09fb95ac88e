"""The base class of completions: targets that a model writes, where a corpus has gold ones."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

from slimexp.data.base import Corpus
from slimexp.loss.base import Loss
from slimexp.model.base import Batch, Family

Writer = Callable[[], AbstractContextManager[Family]]

WRITTEN = "written"  # name in a batch of float32 [B]: 1 where the targets of a row are the student's own, else 0


class Completion:
    """Who writes the targets of a stage; a subclass overrides one of ``write`` with ``corpus``, and ``batch``.

    Attributes:
        needs_teacher: Whether the teacher writes them, before training.
        on_policy: Whether the student writes them, while it is trained.
        prompt: Largest number of tokens of a causal LM's prompt; encoder-decoders ignore it.
    """

    needs_teacher: bool = False
    on_policy: bool = False
    prompt: int

    def check_losses(self, losses: Collection[Loss]) -> None:
        """Refuse losses that cannot learn from what is written.

        Raises:
            ValueError: Says which loss to add.
        """

    def check(self, corpus: Corpus, max_length: int) -> None:
        """Refuse, before anything is trained, a corpus whose targets nobody writes.

        Args:
            corpus: Text to train on.
            max_length: Longest sequence that the student reads, and who else writes, in tokens.

        Raises:
            ValueError: The task has no texts to write, or there is no room for one.
        """
        if corpus.task == "classification":
            raise ValueError(
                "completions are texts, and a classifier of the task classification writes none: leave completion out "
                "(~pipeline.<stage>.completion), or train a seq2seq model or a causal LM"
            )
        if corpus.task == "causal_lm" and self.prompt + 1 >= max_length:
            raise ValueError(
                f"completion.prompt must leave room for a text in max_length={max_length}, got {self.prompt}: set fewer"
            )

    def write(self, corpus: Corpus, writer: Writer, folder: Path, about: str) -> Path | None:
        """Have the teacher write, unless what it would write is on the disk; where ``needs_teacher``.

        Args:
            corpus: The corpus of the run.
            writer: The teacher, on the device that computes within the context.
            folder: Folder of what is written, which all runs share.
            about: What tells the teacher, and the code that writes, from others.

        Returns:
            The file.
        """
        return None

    def corpus(self, corpus: Corpus, path: Path) -> Corpus:
        """The corpus to train on, with other training rows; other splits stay as they are.

        Args:
            corpus: The corpus of the run.
            path: File of what was written.

        Raises:
            ValueError: Nothing in it is fit to be learned from.
        """
        return corpus

    def writes(self, *, seed: int, number: int, progress: float) -> bool:
        """Whether ``batch`` has the student write, given the same of it."""
        return False

    def batch(self, batch: Batch, family: Family, *, seed: int, number: int, progress: float, multiple: int) -> Batch:
        """The batch to train on, on the host, whose targets may be written anew.

        Args:
            batch: Inputs and gold labels, on the host.
            family: The student, on the device that trains it.
            seed: Seed of the stage.
            number: Number of the batch in the training.
            progress: Optimizer step / total steps, in [0, 1].
            multiple: Number that lengths are padded to a multiple of.
        """
        return batch

    def release(self) -> None:
        """Free the memory that is kept from one written batch to the next."""

    def scheduled(self, progress: float) -> dict[str, float]:
        """Quantities that a schedule gives at ``progress``, which are logged as curves: name -> value."""
        return {}
