"""Docstring topic: classify sentences of the standard library's documentation by its parts."""

from collections.abc import Mapping, Sequence

from slimexp.data import grading, library
from slimexp.data.base import Corpus, Direction, Example, Split, Task, rank, row_noise
from slimexp.data.rows import Rows

# The first module of a topic is its largest and always trains. Every supported Python has all of them.
_MODULES = {
    "concurrency": "asyncio threading multiprocessing concurrent subprocess queue selectors sched",
    "debugging": "unittest doctest bdb pdb traceback timeit tracemalloc trace pstats profile",
    "files": "io tarfile pathlib shutil zipfile tempfile lzma gzip fileinput os bz2 ntpath posixpath stat genericpath "
    "linecache fnmatch filecmp zipapp glob",
    "formats": "xml configparser json base64 pickle pickletools shelve csv plistlib html tomllib copyreg",
    "imports": "importlib pkgutil site zipimport sysconfig modulefinder runpy",
    "language": "typing inspect pydoc collections ast enum symtable code contextlib dis functools dataclasses pyclbr "
    "abc graphlib heapq operator weakref copy types bisect",
    "mail": "email mailbox smtplib imaplib mimetypes poplib quopri",
    "network": "http ipaddress urllib xmlrpc ftplib socketserver ssl socket wsgiref webbrowser",
    "numbers": "decimal statistics datetime calendar random numbers uuid fractions hmac secrets",
    "text": "difflib codecs textwrap locale argparse optparse re pprint shlex gettext",
}
TOPICS = {topic: tuple(modules.split()) for topic, modules in _MODULES.items()}
HELD_OUT_SHARE = 0.25  # share of a topic's other modules, for validation and test each; at least one module


def topic_split(module: str, *, split_seed: int) -> tuple[str, Split] | None:
    """Topic and split of a module; ``None`` for a module of no topic.

    Within a topic the modules after the first are ordered by hash, and the leading quarters are held out,
    so that every topic is trained and tested on, and on different modules.
    """
    for topic, (first, *others) in TOPICS.items():
        if module == first:
            return topic, "train"
        if module in others:
            held_out = max(1, round(HELD_OUT_SHARE * len(others)))
            ranked = sorted(others, key=lambda name: rank(name, split_seed=split_seed))
            position = ranked.index(module)
            return topic, "test" if position < held_out else "validation" if position < 2 * held_out else "train"
    return None


class DocstringTopic(Corpus):
    """Sentences of the standard library's docstrings with the topic of their module, split by module.

    Args:
        split_seed: Seed that decides which modules of a topic are held out.
        word_dropout: Share of the words dropped from training sentences, other ones in every epoch, in [0, 1):
            sentences are few, and a word or two must suffice to recognize a topic (Iyyer et al. 2015, section 3).
        seed: Seed of the training noise.
    """

    task: Task = "classification"
    labels = tuple(TOPICS)
    headline = "macro_f1"
    direction: Direction = "max"

    def __init__(self, *, split_seed: int, word_dropout: float, seed: int) -> None:
        if not 0 <= word_dropout < 1:
            raise ValueError(f"word_dropout must be in [0, 1), got {word_dropout}")
        self.split_seed = split_seed
        self.word_dropout = word_dropout
        self.seed = seed

    def load(self) -> Mapping[Split, Sequence[Example]]:
        topics = {
            module: topic_split(module, split_seed=self.split_seed) for modules in TOPICS.values() for module in modules
        }

        def assign(module: str) -> Split | None:
            topic = topics.get(module)
            return topic[1] if topic else None

        index = {module: self.labels.index(topic[0]) for module, topic in topics.items() if topic}
        texts = library.sentences(packages="none", assign=assign)
        return {split: [Example(row.text, label=index[row.module]) for row in rows] for split, rows in texts.items()}

    def training_example(self, index: int, epoch: int) -> Example:
        """Row ``index`` with the words that are not dropped in ``epoch``, at least one."""
        row = self.splits["train"][index]
        words = row.source.split()
        noise = row_noise(self.seed, epoch, index)
        kept = [word for word in words if noise.random() >= self.word_dropout]
        return Example(" ".join(kept or [noise.choice(words)]), label=row.label)

    def grade(self, predictions: Sequence[int], examples: Sequence[Example]) -> dict[str, float]:
        return grading.grade_label(predictions, examples, classes=len(self.labels))

    def by_row(self, predictions: Sequence[int], examples: Sequence[Example]) -> dict[str, Rows]:
        return grading.label_by_row(predictions, examples)

    def trivial(self, examples: Sequence[Example]) -> float:
        """Macro F1 of drawing classes as often as they are in the training split."""
        return grading.guessed_macro_f1(self.splits["train"], examples)
