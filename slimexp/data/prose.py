"""English sentences out of Python source, by parsing it and never importing it."""

import ast
import itertools
import re
import warnings
from collections.abc import Iterator

SHORTEST, LONGEST = 20, 120  # characters of a sentence
FEWEST_WORDS = 3

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`~?([^`<]+?)(?: ?<[^`]*>)?`_*")  # :class:`Foo` -> Foo
_QUOTED = re.compile(r"`{1,2}'?([^`']+?)(?:`{1,2}|')_{0,2}(?!\w)")  # ``foo`` and `foo' -> foo
_STRONG = re.compile(r"(?<![\w*])\*{1,2}([A-Za-z_]\w*)\*{1,2}(?![\w*])")  # *foo* -> foo
_SPLIT = re.compile(r"(?<=[a-z0-9\])'\"][.!?])\s+(?=[A-Z])|(?<=[A-Z][A-Z][.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:.!?()'\"_/%+-]*[.!?]\)?")
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|Mr|Dr|St|No|al)\.$")
_LIST_ITEM = re.compile(r"\s*(?:[-*+o]|\d+[.)]|#|\.\.|:(?!\w+(?::\w+)?:`)|@|>>>|\.\.\.|[|=~^\"-]{2,})(?:\s|$|\w)")
_CODE = re.compile(r"https?:|www\.|\w\(\w*[^)]*[,\"']|\w/\w+/|__file__|\.\.\.|--|::|  |\d{4}-\d\d|\$|;.*;")


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in file order, dedented; none if it does not parse."""
    if '"""' not in source and "'''" not in source:
        return  # one-line docstrings in plain quotes exist, but parsing whole files for them does not pay
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text
        stack.extend(child for child in reversed(list(ast.iter_child_nodes(node))) if isinstance(child, ast.stmt))


def sentences(text: str) -> Iterator[str]:
    """Plain English sentences of a docstring or manual page, markup removed, one line each.

    Lines that follow each other at one indentation make a paragraph; lists, tables and code
    are left out, by their first characters here or by ``is_prose``.
    """
    for block in re.split(r"\n\s*\n", text):
        for _, lines in itertools.groupby(block.splitlines(), key=lambda line: len(line) - len(line.lstrip())):
            paragraph = list(lines)
            if not any(_LIST_ITEM.match(line) for line in paragraph):
                prose = _ROLE.sub(r"\1", " ".join(" ".join(paragraph).split()))
                prose = _STRONG.sub(r"\1", _QUOTED.sub(r"\1", prose))
                yield from (sentence for sentence in _cut(prose) if is_prose(sentence))


def _cut(prose: str) -> Iterator[str]:
    """Sentences of a paragraph, which do not end at abbreviations."""
    sentence = ""
    for piece in _SPLIT.split(prose):
        sentence = f"{sentence} {piece}" if sentence else piece
        if not _ABBREVIATED.search(sentence):
            yield sentence
            sentence = ""
    if sentence:
        yield sentence


def is_prose(sentence: str) -> bool:
    """Whether ``sentence`` is one plain English sentence of a usable length."""
    if not SHORTEST <= len(sentence) <= LONGEST or not _SENTENCE.fullmatch(sentence) or _CODE.search(sentence):
        return False
    words = sentence.split()
    plain = sum(word.strip(".,;:!?()'\"").replace("-", "").replace("'", "").isalpha() for word in words)
    lower = sum(character.islower() for character in sentence)
    return len(words) >= FEWEST_WORDS and plain >= 0.6 * len(words) and lower >= 0.6 * len(sentence)


def normalised(text: str) -> str:
    """The letters and digits of a text without case: texts count as the same if these are equal."""
    return re.sub(r"[^a-z0-9]+", " ", text.casefold()).strip()
