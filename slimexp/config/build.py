"""Constructs what a config describes; what a constructor refuses is an error of the config."""

import re
from functools import partial
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf


class ConfigError(ValueError):
    """Something the user can put right in a config or on the command line."""


def build(node: Any, **overrides: Any) -> Any:
    """Construct what ``node`` describes, and everything below it.

    Args:
        node: A config node; one without ``_target_`` gives a dict or list of what is in it.
        overrides: Runtime objects, handed to the constructor as they are (Hydra would copy them into the config).

    Raises:
        ConfigError: A constructor refused its values.
    """
    where = node._get_full_key(None) if OmegaConf.is_config(node) else ""
    try:
        if not overrides:
            return hydra.utils.instantiate(node, _convert_="all")
        deferred = hydra.utils.instantiate(node, _convert_="all", _partial_=True)
        return partial(deferred, **overrides) if node.get("_partial_", False) else deferred(**overrides)
    except Exception as error:
        nested = isinstance(error, InstantiationException)
        cause = error.__cause__ if nested else error
        if not refused(cause):
            raise
        key = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE) if nested else None
        raise ConfigError(_at(key[1] if key else where, cause)) from cause


def refused(error: BaseException | None) -> bool:
    """Whether a constructor refused its values; Lightning has an exception of its own for it."""
    abstract = isinstance(error, TypeError) and "abstract class" in str(error)
    return isinstance(error, ValueError) or abstract or type(error).__name__ == "MisconfigurationException"


def _at(key: str, message: object) -> str:
    return f"{key}: {message}" if key else str(message)
