"""Secrets of a config, kept out of files, services and messages, as are values of the environment.

A run uses ``${oc.env:TOKEN}`` by its value; all that is written of a config keeps the text. What was typed itself at a
key such as ``password`` or ``hub_token``, or as the user of a URL, is written as ``***``. The keys of stages are
digests of the values: another value of a variable is other work, and a digest does not give the value back.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from slimexp.config.password import HIDDEN, masked_text

_FROM = "oc.env"
_LEAST = 6  # letters of a value that messages are searched for; a shorter one stands in words by chance
_KEY = re.compile(
    r"(^|\.)token$"  # but no pad_token
    r"|(^|[._])((api|access|auth|bearer|hf|hub|private|refresh|wandb)_?token|pass(word|wd|phrase)|pwd|secret"
    r"|(api|access|secret|private)_?key|credentials?)$",
    re.IGNORECASE,
)
_KEYS_WITHIN = re.compile(r"[{,]\s*(?:\\*['\"])?([\w.-]+)(?:\\*['\"])?\s*:")  # of a dict in a text
_replacements: dict[str, str] = {}  # text that messages must not repeat -> text in its place


class _Withheld(Exception):
    """The environment is not read now."""


def register() -> None:
    """Have configs remember what they read of the environment, so that messages do not repeat it."""

    def read(name: str, default: Any = oc._DEFAULT_MARKER_) -> Any:
        value = oc.env(name) if default is oc._DEFAULT_MARKER_ else oc.env(name, default)
        if value is not None and name in os.environ and len(value) >= _LEAST:  # else it is the default, an open word
            _replacements[value] = f"${{{_FROM}:{name}}}"
        return value

    OmegaConf.register_new_resolver(_FROM, read, replace=True)


def written(node: Any) -> Any:
    """``node`` in plain containers, resolved except for what comes from the environment, and with secrets masked."""
    with _withheld():
        return _written(node)


def hides(node: Any) -> bool:
    """Whether ``written`` changes any value below ``node``."""
    return bool(written(node) != OmegaConf.to_container(node, resolve=True))


def masked(overrides: Sequence[str] | ListConfig) -> list[str]:
    """Overrides of a command line as they were typed, with secrets masked.

    Those in Hydra's own config are nodes, and reading one would put a variable's value in its place.
    """
    typed = OmegaConf.to_container(overrides) if isinstance(overrides, ListConfig) else overrides
    return [_masked(override) for override in typed]  # type: ignore[arg-type, union-attr]


def remember(overrides: Sequence[str]) -> None:
    """Remember the secrets in overrides, so that messages do not repeat them, nor libraries their values."""
    for override in overrides:
        if (hidden := _masked(override)) != override:
            _replacements[override] = hidden
            value = override.partition("=")[2].strip("'\"")
            if hidden.endswith(f"={HIDDEN}") and len(value) >= _LEAST:
                _replacements[value] = HIDDEN


def redacted(text: str) -> str:
    """``text`` with remembered secrets, values of the environment and passwords in URLs replaced."""
    for value in sorted(_replacements, key=len, reverse=True):
        text = text.replace(value, _replacements[value])
    return masked_text(text)


def _masked(override: str) -> str:
    key, equals, value = override.partition("=")
    if equals and _is_secret(key.lstrip("+~"), value):
        return f"{key}={HIDDEN}"
    return f"{key}{equals}{masked_text(_masked_value(override, value))}"


def _masked_value(override: str, value: str) -> str:
    """The value of an override with secrets of its dicts masked; wholly masked where they cannot be told apart."""
    if not _holds_secret_key(value):
        return value
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return HIDDEN
    if parsed.is_sweep_override():
        return HIDDEN
    tree = parsed._value
    hidden = _without_secrets(tree)
    return value if hidden == tree else Override._get_value_element_as_str(hidden, space_after_sep=True)


def _without_secrets(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: HIDDEN if _is_secret(str(key), inner) else _without_secrets(inner) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [_without_secrets(inner) for inner in tree]
    text = getattr(tree, "text", tree)  # of what stood in quotes
    return HIDDEN if isinstance(text, str) and _holds_secret_key(text) else tree


def _holds_secret_key(text: str) -> bool:
    return any(_KEY.search(key) for key in _KEYS_WITHIN.findall(text))


def _is_secret(key: str, value: object) -> bool:
    """Whether ``value`` must be masked at ``key``: no value, a switch and the name of a variable need not be."""
    text = str(value).lower()
    return text not in ("", "none", "null", "true", "false", "???") and "${" not in text and bool(_KEY.search(key))


@contextmanager
def _withheld() -> Iterator[None]:
    """Have every interpolation that reads the environment, itself or through others, fail."""

    def refuse(*_: Any) -> None:
        raise _Withheld

    OmegaConf.register_new_resolver(_FROM, refuse, replace=True)
    try:
        yield
    finally:
        register()


def _written(node: Any) -> Any:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        return {str(key): _entry(node, key) for key in node}
    if isinstance(node, ListConfig) and not node._is_none() and not node._is_missing():
        return [_entry(node, index) for index in range(len(node))]
    if isinstance(node, DictConfig | ListConfig):
        return None if node._is_none() else "???"
    return _plain(node)


def _entry(parent: DictConfig | ListConfig, key: Any) -> Any:
    child = parent._get_node(key)
    if OmegaConf.is_missing(parent, key):
        return "???"
    try:
        value = parent[key]
    except OmegaConfBaseException:
        return child._value()  # type: ignore[union-attr]
    if isinstance(value, DictConfig | ListConfig):
        return _hidden(_written(value)) if _KEY.search(str(key)) else _written(value)
    return HIDDEN if _is_secret(str(key), value) else _plain(value)


def _hidden(tree: Any) -> Any:
    """A tree below a secret key: its structure, with every leaf masked that could be a secret."""
    if isinstance(tree, dict):
        return {key: _hidden(inner) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [_hidden(inner) for inner in tree]
    return HIDDEN if _is_secret("secret", tree) else tree


def _plain(value: Any) -> Any:
    """A value that containers hold, without passwords in URLs."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return masked_text(value) if isinstance(value, str) else value


register()
