"""The base class of measures that ask questions: what was answered is kept, and compared with dense one by one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from slimexp.data.base import Corpus
from slimexp.data.paired import differences
from slimexp.data.rows import Scores
from slimexp.measure.base import Measure, Subject
from slimexp.record.schema import DIFFERENCE


class ByQuestion(Measure):
    """A measure whose figures are made of results of single questions.

    Its results are kept by the weights that were tested, ``Subject.store``. The same weights, of another run or as the
    first stage of another chain, are not tested again. A model is compared with the dense one on the same questions:
    beside a figure stand ``<figure>_difference`` and its 95 % interval, see ``paired.interval``.
    """

    @abstractmethod
    def tests(self, subject: Subject, corpus: Corpus) -> Mapping[str, Mapping[str, Any]]:
        """Name of each test -> all that its results depend on beside the weights, the questions included, as JSON."""

    @abstractmethod
    def results(self, names: Sequence[str], subject: Subject, corpus: Corpus) -> Mapping[str, Scores]:
        """Results of a model in the tests that are named; it is left as it was."""

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        own = self._scores(subject, corpus)
        figures = {name: value for scores in own.values() for name, value in scores.figures.items()}
        if baseline.folder != subject.folder:
            figures |= _minus(own, self._scores(baseline, corpus), DIFFERENCE)
        return figures

    def minus(self, subject: Subject, other: Subject, corpus: Corpus, suffix: str) -> dict[str, float]:
        """Differences of a model from another on the same questions, see ``paired.differences``.

        Args:
            subject: The model.
            other: The other; either is loaded only where its results are not in its store.
            corpus: Held-out text.
            suffix: What the names of the figures end in.
        """
        return _minus(self._scores(subject, corpus), self._scores(other, corpus), suffix)

    def _scores(self, subject: Subject, corpus: Corpus) -> dict[str, Scores]:
        """Results in all tests, those that were kept among them."""
        store, tests = subject.store, self.tests(subject, corpus)
        if store is None:
            return dict(self.results(list(tests), subject, corpus))
        paths = {test: store.path(type(self), test, subject.weights, settings) for test, settings in tests.items()}
        scores: dict[str, Scores] = {}
        for test, path in paths.items():
            if (found := store.find(path)) is not None:
                scores[test], earlier = found
                if earlier:
                    print(f"  {test}: these weights were tested before, reused from {path}", flush=True)
        left = [test for test in tests if test not in scores]
        for test, result in (self.results(left, subject, corpus) if left else {}).items():
            store.keep(paths[test], result, {"test": test, "weights": subject.weights})
            scores[test] = result
        for test, path in paths.items():
            store.note(subject.folder, test, path)
        return {test: scores[test] for test in tests}


def _minus(own: Mapping[str, Scores], other: Mapping[str, Scores], suffix: str) -> dict[str, float]:
    """Differences in all tests."""
    figures: dict[str, float] = {}
    for test, scores in own.items():
        figures |= differences(scores.rows, other[test].rows, suffix)
    return figures
