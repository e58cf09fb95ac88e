"""Values in the types of strict JSON, for a line of a record file."""

import math
from collections.abc import Mapping
from typing import Any


def finite_numbers(group: str, numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers in Python's own types, converted from NumPy scalars and tensors of one element.

    Args:
        group: Name of the field that holds them, for the message.
        numbers: Name -> number.

    Raises:
        ValueError: A number is not finite.
    """
    converted = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
    if bad := {name: value for name, value in converted.items() if not math.isfinite(value)}:
        named = ", ".join(f"{group}.{name} = {value}" for name, value in bad.items())
        raise ValueError(f"a record holds finite numbers only, got {named}")
    return converted


def plain(value: Any) -> Any:
    """The value in types of JSON; what JSON cannot express (paths, infinities of a configuration) becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
