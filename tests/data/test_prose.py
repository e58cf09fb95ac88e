import pytest

from slimexp.data import prose

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "text",
    [
        "Return the number of items in the queue.",
        "Raise an exception if the file doesn't exist (see below).",
        "Is this a directory or a file?",
    ],
)
def test_keeps_prose(text: str) -> None:
    assert list(prose.sentences(text)) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "Too short.",
        "this one starts in the middle of something.",
        "This one never comes to its end",
        "See https://example.org/manual for all of the details.",
        ">>> This is a doctest line and no sentence.",
        "- An item of a list is not kept either.",
        "Call f(a, b) and g(x, y) and then x = h(1, 2).",
        "A naïve sentence with letters beyond ASCII is left out.",
        "This sentence goes on " + "and on " * 20 + "for ever.",
    ],
)
def test_drops_the_rest(text: str) -> None:
    assert list(prose.sentences(text)) == []


def test_cuts_paragraphs_into_sentences_without_markup() -> None:
    text = (
        "Open the *file* and return a\n:class:`~io.Stream` object.  Files (e.g. ``data.txt``) must exist. "
        "Otherwise it all fails!\n\n    indented(code)\n"
    )
    assert list(prose.sentences(text)) == [
        "Open the file and return a io.Stream object.",
        "Files (e.g. data.txt) must exist.",
        "Otherwise it all fails!",
    ]


def test_docstrings_in_file_order_without_running_the_file() -> None:
    source = (
        '"""Module."""\nraise SystemExit\nclass A:\n    """Class."""\n    async def f(self):\n        """Method."""\n'
    )
    assert list(prose.docstrings(source)) == ["Module.", "Class.", "Method."]
    assert list(prose.docstrings('"""Unfinished."""\ndef (')) == []


def test_normalised_ignores_case_space_and_punctuation() -> None:
    assert prose.normalised("The  Item, (again).") == prose.normalised("the item again")
