"""Packages that only some commands need."""

import importlib
from types import ModuleType


def require(module: str, *, extra: str, by: str) -> ModuleType:
    """Import a package that is not among slimexp's own dependencies.

    Args:
        module: Dotted name of the module.
        extra: Extra of slimexp that installs it.
        by: Setting that needs it, as it is typed.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and misses something itself
        raise ValueError(
            f"{by} needs a package that is not here ({error.name}): pip install 'slimexp[{extra}]'"
        ) from error
