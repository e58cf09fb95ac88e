"""Whatever stands in a file, its reader gives a value or refuses it: near a valid document, or nothing like one."""

from pathlib import Path

import pytest

from benchmarks.faults import fuzz
from benchmarks.faults.fuzz import READERS, Reader


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_the_document_that_others_are_made_from(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    text = reader.valid if isinstance(reader.valid, str) else fuzz._text(reader.valid)
    reader.write(tmp_path, text.encode())
    reader.read(tmp_path)  # else every change of it would be refused, and nothing shown


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses(name: str, tmp_path: Path) -> None:
    assert fuzz.hold(READERS[name], tmp_path, examples=fuzz.FIXED) >= fuzz.FIXED / 2


@pytest.mark.fast
@pytest.mark.parametrize("error", [KeyError, TypeError, RecursionError, AttributeError, MemoryError])
def test_another_error_is_found(error: type[Exception], tmp_path: Path) -> None:
    def careless(folder: Path) -> None:
        if b"nothing" not in (folder / "x.json").read_bytes():
            raise error("careless")

    with pytest.raises(error, match="careless"):
        fuzz.hold(Reader("x.json", [{"a": "nothing"}], careless), tmp_path, examples=50)


@pytest.mark.fast
@pytest.mark.parametrize("refusal", fuzz.REFUSALS)
def test_a_refusal_is_right(refusal: type[Exception], tmp_path: Path) -> None:
    def strict(folder: Path) -> None:
        raise refusal("no")

    assert fuzz.hold(Reader("x.json", [{"a": 1}], strict), tmp_path, examples=20)


@pytest.mark.fast
def test_the_same_documents_come_at_every_call(tmp_path: Path) -> None:
    seen: list[list[bytes]] = [[], []]
    for one in seen:
        fuzz.hold(
            Reader("x.json", [{"a": 1}], lambda folder, one=one: one.append((folder / "x.json").read_bytes())),
            tmp_path,
            examples=20,
        )
    assert seen[0] == seen[1] and len(set(seen[0])) > 10
