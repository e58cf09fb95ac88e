"""A model that is cut out of a larger one before anything is trained."""

from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from slimexp.cut.keep import Keep
from slimexp.model.base import Family, Source
from slimexp.model.history import History
from slimexp.model.widths import RANKS


class CutOut(Source):
    """A smaller model cut out of a larger one, by the norms of its weights.

    Args:
        source: Source of the larger model.
        cut: What the smaller model retains.
    """

    def __init__(self, *, source: Source, cut: Keep) -> None:
        self.source = source
        self.cut = cut
        self.max_length = source.max_length
        self.is_random = source.is_random
        self.has_tokenizer = source.has_tokenizer

    def check_files(self) -> None:
        self.source.check_files()

    def history(self) -> History:
        return History(format=self.stored_as(), cut=True)

    def stored_as(self) -> str | None:
        return self.source.stored_as()

    @property
    def origin(self) -> Source:
        return self.source

    def validate(self, task: str, labels: Sequence[str] = ()) -> PreTrainedConfig:
        config = self.source.validate(task, labels)
        self.cut.validate(config)
        for axis in self.cut.ranks:
            raise ValueError(
                f"cut.{RANKS[axis]} must be null for a model that is cut as it is loaded, since maps are fitted on "
                "calibration text: give it to the cut of a stage (pipeline.<stage>.cut)"
            )
        return config

    def usual_task(self) -> str:
        return self.source.usual_task()

    def is_trained(self, task: str) -> bool:
        return self.source.is_trained(task)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def load_tokenizer(self, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
        return self.source.load_tokenizer(texts)

    def load(self, *, task: str, texts: Callable[[], Iterable[str]], labels: Sequence[str]) -> Family:
        return self.cut.apply(self.source.load(task=task, texts=texts, labels=labels), batches=[])
