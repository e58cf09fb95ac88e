"""Measured milliseconds of candidates before any training, beside the dense model in the same minute."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slimexp import artifact
from slimexp.candidate.choice import Candidate
from slimexp.candidate.kept_file import KeptFile
from slimexp.candidate.score import Scorer
from slimexp.config.build import build
from slimexp.data.base import Corpus
from slimexp.host.progress import counted
from slimexp.measure.base import Stored

_DENSE = "dense, measured beside "


class Stopwatch:
    """Measures candidates as they would be served.

    What else the machine does changes from minute to minute, so that the ratio to the dense model is what is kept of a
    candidate; its milliseconds are that times the median of all measurements of the dense model.

    Args:
        scorer: Makes the candidates.
        corpus: The text, for the measure.
        node: Config of measure ``latency``: the request.
        pairs: Pairs of requests.
        device: Device that they run on.
        dtype: Type of the stored weights.
        kept: Ratios that were measured before.
    """

    def __init__(
        self,
        scorer: Scorer,
        corpus: Corpus,
        node: DictConfig,
        *,
        pairs: int,
        device: torch.device,
        dtype: torch.dtype,
        kept: KeptFile,
    ) -> None:
        self.scorer, self.corpus, self.kept = scorer, corpus, kept
        self.device, self.dtype = device, dtype
        self._measure: Any = build({**node, "repeats": pairs})
        self._dense: Stored | None = None

    def milliseconds(self, candidates: Iterable[Candidate], what: str) -> dict[str, float]:
        """Candidate, as text -> milliseconds per request."""
        wanted = list(candidates)
        missing = [candidate for candidate in wanted if str(candidate) not in self.kept.numbers]
        for candidate in counted(missing, what):
            with self.kept.beside() as folder:
                self._take(candidate, Path(folder))
        return {str(candidate): self.kept.numbers[str(candidate)] * self.dense_ms for candidate in wanted}

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the dense model: the median of its measurements."""
        return statistics.median(value for name, value in self.kept.numbers.items() if name.startswith(_DENSE))

    def _take(self, candidate: Candidate, folder: Path) -> None:
        if self._dense is None:
            self._home = self.kept.beside()
            artifact.save(self.scorer.family, Path(self._home.name) / "dense", dtype=self.dtype, stages=[])
            self._dense = self._stored(Path(self._home.name) / "dense")
        artifact.save(self.scorer.realized(candidate), folder / "model", dtype=self.dtype, stages=[])
        figures = self._measure.measure(self._stored(folder / "model"), self._dense, self.corpus)
        self.kept.add(_DENSE + str(candidate), figures["latency_p50_ms_dense"])
        self.kept.add(str(candidate), figures["latency_ratio"])

    def _stored(self, folder: Path) -> Stored:
        return Stored(
            folder,
            lambda dtype: artifact.served(folder, self.device, dtype=dtype),
            self.device,
            max_length=self.scorer.family.max_length,
        )
