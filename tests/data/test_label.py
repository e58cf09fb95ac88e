from typing import Any

import pytest

from slimexp.data.label import check, check_count, name_of, ordered

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1, 1.0, "1", " 1 ", "1\u00a0"), "1"),
        ((-1, -1.0, "-1"), "-1"),
        ((True, "True"), "True"),
        (("negative", "negative ", "\u00a0negative", "\ufeffnegative", "neg\u200bative"), "negative"),
        (("very good", "very  good", "very\tgood", "very\u00a0good"), "very good"),
        (("caf\u00e9", "cafe\u0301"), "caf\u00e9"),  # composed and not
        ((None, float("nan"), "", "  ", "\u00a0", "\u200b"), ""),
    ],
)
def test_one_name_for_all_spellings(values: tuple[Any, ...], name: str) -> None:
    assert {name_of(value) for value in values} == {name}


@pytest.mark.parametrize("value", [0.5, float("inf"), b"a", ["a"], {"a": 1}])
def test_what_names_no_class(value: Any) -> None:
    with pytest.raises(ValueError, match="must hold text or integers, got"):
        name_of(value)


def test_order() -> None:
    assert ordered(["10", "-1", "9"]) == ["-1", "9", "10"]
    assert ordered(["10", "a", "9"]) == ["10", "9", "a"]


@pytest.mark.parametrize("names", [("Negative", "negative"), ("1", "1.0"), ("1", "01"), ("True", "1"), ("false", "0")])
def test_two_spellings_of_a_class_are_refused_by_their_places(names: tuple[str, str]) -> None:
    places = {names[0]: "a.csv, line 2", "other": "a.csv, line 3", names[1]: "a.csv, line 4"}
    with pytest.raises(
        ValueError, match=f"a.csv, line 4: column 'label' holds '{names[1]}', and '{names[0]}' at a.csv, line 2"
    ):
        check(places, "label")


@pytest.mark.parametrize(
    "names",
    [
        ("9007199254740992", "9007199254740993"),  # one float
        ("9007199254740992", "9007199254740993", "none"),
        ("3.1", "3.10", "main"),  # versions, not numbers
        ("1e999999999", "1e999999998"),
        ("nan1", "sNaN1", "x"),
    ],
)
def test_names_that_only_a_float_takes_for_one(names: tuple[str, ...]) -> None:
    check({name: f"a.csv, line {number}" for number, name in enumerate(names, start=2)}, "label")


@pytest.mark.parametrize("names", [("3.1", "3.10"), ("1e2", "100"), ("+7", "7")])
def test_numbers_that_are_equal_are_one(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="one class has one spelling"):
        check({name: f"a.csv, line {number}" for number, name in enumerate(names, start=2)}, "label")


def test_scores_are_no_classes() -> None:
    with pytest.raises(ValueError, match=r"a.csv, line 3: column 'stars' holds scores \(4.5\)"):
        check({"4": "a.csv, line 2", "4.5": "a.csv, line 3"}, "stars")
    check({"4": "a.csv, line 2", "4.5": "a.csv, line 3", "none": "a.csv, line 4"}, "stars")  # words


@pytest.mark.parametrize(
    ("count", "rows", "message"),
    [
        (1, 40, "one class alone"),
        (180, 200, "180 classes in 200 training rows"),
        (2, 4, None),
        (20, 20, None),
        (1500, 9000, None),
    ],
)
def test_how_many_classes_a_column_may_hold(count: int, rows: int, message: str | None) -> None:
    names = [str(number) for number in range(count)]
    if message is None:
        check_count(names, rows, "label")
    else:
        with pytest.raises(ValueError, match=message):
            check_count(names, rows, "label")
