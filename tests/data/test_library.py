"""The harvest, on a tiny library; its figures on the real one are in test_spelling and its neighbours."""

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slimexp.data import library as lib
from slimexp.data import prose
from slimexp.data.base import HELD_OUT

Make = Callable[[str], str]
assign = partial(lib.split_of, split_seed=0)


def held_out_module(root: Path) -> str:
    return next(path.stem for path in sorted(root.glob("*.py")) if assign(path.stem) == "test")


def keys(texts: list[lib.Text]) -> set[str]:
    return {prose.normalised(text.text) for text in texts}


@pytest.mark.fast
def test_split_depends_on_the_name_and_the_seed_alone() -> None:
    assert [lib.split_of(name, split_seed=0) for name in ("xml", "unittest", "asyncio")] == [
        "test",
        "validation",
        "train",
    ]
    assert {lib.split_of("xml", split_seed=seed) for seed in range(30)} == {"train", "validation", "test"}


@pytest.mark.fast
def test_what_some_python_lacks_is_never_held_out() -> None:
    assert {lib.split_of(name, split_seed=seed) for name in lib.TRAIN_ONLY for seed in range(20)} == {"train"}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("module", "public"),
    [("_pydecimal", "decimal"), ("_collections_abc", "collections"), ("json", "json"), ("_io", "io")],
)
def test_private_modules_follow_the_public_one(module: str, public: str) -> None:
    assert lib.public(module) == public


@pytest.mark.parametrize("harvest", [lib.sentences, partial(lib.passages, size=200)], ids=["sentences", "passages"])
def test_harvest_keeps_modules_apart(library: Path, harvest: Any) -> None:
    found = harvest(packages="none", assign=assign)
    assert all(assign(text.module) == split for split, texts in found.items() for text in texts)
    assert not keys(found["test"]) & keys(found["train"])
    assert all(found.values())


def test_harvest_ignores_the_order_of_files(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = lib.sentences(packages="none", assign=assign)
    walk = os.walk

    def backwards(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        return ((folder, folders, names[::-1]) for folder, folders, names in walk(root))

    monkeypatch.setattr(os, "walk", backwards)
    assert lib.sentences(packages="none", assign=assign) == straight


def test_manual_pages_are_training_text(library: Path) -> None:
    (library / "pydoc_data").mkdir()
    page = "The manual says a great deal about many things."
    (library / "pydoc_data" / "topics.py").write_text(f"topics = {{'assert': {page!r}}}\n")
    assert lib.Text("pydoc_data", page) in lib.sentences(packages="none", assign=assign)["train"]


@pytest.mark.parametrize("packages", ["none", "installed"])
def test_packages_add_training_text_only(
    library: Path, tmp_path: Path, make_module: Make, packages: lib.Packages
) -> None:
    alone = lib.sentences(packages="none", assign=assign)
    (tmp_path / "site-packages" / "extra.py").write_text(make_module("extra"))
    (tmp_path / "site-packages" / "slimexp.py").write_text(make_module("slimexp"))
    found = lib.sentences(packages=packages, assign=assign)
    assert all(found[split] == alone[split] for split in HELD_OUT)
    added = {text.module for text in found["train"]} - {text.module for text in alone["train"]}
    assert added == ({"extra"} if packages == "installed" else set())


@pytest.mark.parametrize("harvest", [lib.sentences, partial(lib.passages, size=400)], ids=["sentences", "passages"])
def test_vendored_copies_do_not_leak(library: Path, tmp_path: Path, make_module: Make, harvest: Any) -> None:
    """A held-out module inside a package, with a new docstring on top and its functions indented."""
    body = (library / f"{held_out_module(library)}.py").read_text().partition("\n\n")[2]
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    site = tmp_path / "site-packages"
    (site / "backport.py").write_text('"""A backport of something from the future of Python."""\n\n' + body)
    (site / "nested.py").write_text("if True:\n" + indented)
    (site / "clean.py").write_text(make_module("clean"))
    found = harvest(packages="installed", assign=assign)
    modules = {text.module for text in found["train"]}
    assert "clean" in modules
    assert not modules & {"backport", "nested"}


def test_a_single_repeated_sentence_does_not_leak(library: Path, tmp_path: Path) -> None:
    sentence = lib.sentences(packages="none", assign=assign)["test"][0].text
    quoted = sentence.replace(" ", "  ").replace(".", "!")
    (tmp_path / "site-packages" / "quote.py").write_text(f'"""{quoted}"""\n')
    found = lib.sentences(packages="installed", assign=assign)
    assert prose.normalised(sentence) in keys(found["test"])
    assert prose.normalised(sentence) not in keys(found["train"])


def test_broken_files_are_passed_over(library: Path) -> None:
    (library / "ast.py").write_text('"""Not finished, so it is no Python at all."""\ndef (')
    (library / "abc.py").write_bytes(b'"""\xff is no UTF-8 whatever you say."""')
    assert all(lib.sentences(packages="none", assign=assign).values())


def test_a_python_without_its_source_is_named(library: Path) -> None:
    for path in library.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no source of the standard library at"):
        lib.sentences(packages="none", assign=assign)


@pytest.mark.parametrize("harvest", [lib.sentences, partial(lib.passages, size=200)], ids=["sentences", "passages"])
def test_the_library_is_read_once_until_it_changes(
    library: Path, harvest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = harvest(packages="none", assign=assign)
    with monkeypatch.context() as context:
        context.setattr(lib, "read", lambda path: pytest.fail(f"{path} is read again"))
        second = harvest(packages="none", assign=partial(lib.split_of, split_seed=0))  # as another pipeline does
    assert second == first and second is not first
    second["train"].clear()  # what a caller does to its own
    assert harvest(packages="none", assign=assign) == first
    everything = harvest(packages="none", assign=lambda module: "train")  # another split is another harvest
    assert not everything["test"] and len(everything["train"]) > len(first["train"])
    path = library / f"{held_out_module(library)}.py"
    path.write_text('"""A sentence that was not there before, and is long enough to count."""\n' * 2)
    assert harvest(packages="none", assign=assign) != first


def test_no_garbage_is_collected_during_the_harvest(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, enabled = lib.read, []

    def reading(path: Path) -> str:
        enabled.append(gc.isenabled())
        return read(path)

    monkeypatch.setattr(lib, "read", reading)
    assert lib.sentences(packages="none", assign=assign)["train"]
    assert enabled and not any(enabled) and gc.isenabled()
