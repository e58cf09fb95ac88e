"""A value of a config fits an annotation, or does not, by the annotation's text alone."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from slimexp.config.annotation import fits, is_of_type, out_of_range

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("int", 1, True),
        ("int", True, False),
        ("int", 1.0, False),
        ("float", 1, True),
        ("bool", 1, False),
        ("str", "a", True),
        ("str | None", None, True),
        ("str", None, False),
        ("Optional[int]", None, True),
        ("Union[int, str]", "a", True),
        ("Literal['min', 'max']", "max", True),
        ("Literal['min', 'max']", "mean", False),
        ("Sequence[int]", [1, 2], True),
        ("Sequence[int]", [1, "a"], False),
        ("Sequence[int]", 1, False),
        ("tuple[int, str]", [1, "a"], True),
        ("tuple[int, str]", [1], False),
        ("tuple[int, ...]", [1, 2, 3], True),
        ("Mapping[str, int]", {"a": 1}, True),
        ("Mapping[str, int]", {"a": "b"}, False),
        ("'int'", "a", False),
        ("torch.Tensor", 1, False),
        ("Teacher", "a", True),
        ("float | Schedule", 1.5, True),
        ("float | Schedule", "a", False),
        ("float | Schedule", {"_target_": "slimexp.schedule.Linear"}, True),
        ("no annotation at all", "a", True),
        (None, "a", True),
    ],
)
def test_fits(annotation: str | None, value: Any, expected: bool) -> None:
    node = OmegaConf.create({"value": value})
    assert fits(annotation, node["value"], strict=True) is expected


def test_null_fits_the_classes_of_others_and_not_ours() -> None:
    assert fits("Teacher", None, strict=False) and not fits("Teacher", None, strict=True)


def test_a_component_fits_every_class_and_no_number() -> None:
    node = OmegaConf.create({"_target_": "slimexp.loss.kl.ForwardKl"})
    assert fits("Loss", node, strict=True) and not fits("int | None", node, strict=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "must be a finite number"),
        (-float("inf"), "must be a finite number"),
        (2**63, "must be below 2^63"),
        (2**63 - 1, ""),
        (0.5, ""),
        ("a", ""),
    ],
)
def test_out_of_range(value: object, expected: str) -> None:
    assert out_of_range(value) == expected
    assert fits("int", value, strict=True) or not expected  # it is reported as out of range, and not as of another type


def test_plain_values_are_of_one_word() -> None:
    assert is_of_type("float", 1) and is_of_type("int", 1) and is_of_type("bool", True) and is_of_type("str", "")
    assert not is_of_type("float", True) and not is_of_type("int", 1.5) and not is_of_type("Tensor", 1)
