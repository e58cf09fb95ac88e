"""What a config may leave in a file, a service or a message: no value of the environment, no secret.

A run uses ``${oc.env:TOKEN}`` by its value; all that is written of a config keeps the text. What was typed itself at a
key such as ``password`` or ``hub_token``, or as the user of a URL, is written as ``***``. The keys of stages are
digests of the values: another value of a variable is other work, and a digest does not give the value back.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

HIDDEN = "***"
_FROM = "oc.env"
_LEAST = 6  # letters of a value that messages are searched for; a shorter one stands in words by chance
_KEY = re.compile(
    r"(^|\.)token$"  # but no pad_token
    r"|(^|[._])((api|access|auth|bearer|hf|hub|private|refresh|wandb)_?token|pass(word|wd|phrase)|secret"
    r"|(api|access|secret|private)_?key|credentials?)$",
    re.IGNORECASE,
)
# A URL with a password: USER:PASSWORD@, or a setting of such a name.
_USER_OF_URL = re.compile(r"(?<=://)[^/?#\s'\"]*:[^\s'\"]*(?=@)")
_SETTING_OF_URL = re.compile(r"([?&;][^=&;\s]*(?:pass|pwd|secret|token)[^=&;\s]*=)[^&\s'\"]*", re.IGNORECASE)
_given: dict[str, str] = {}  # value of the environment that a config read -> how it named it


class _Withheld(Exception):
    """The environment is not read now."""


def register() -> None:
    """Remember what a config reads of the environment, so that messages do not repeat it."""

    def read(name: str, default: Any = oc._DEFAULT_MARKER_) -> Any:
        value = oc.env(name) if default is oc._DEFAULT_MARKER_ else oc.env(name, default)
        if isinstance(value, str) and len(value) >= _LEAST:
            _given[value] = f"${{{_FROM}:{name}}}"
        return value

    OmegaConf.register_new_resolver(_FROM, read, replace=True)


def written(node: Any) -> Any:
    """``node`` in plain containers and resolved, but for what comes from the environment and what is secret."""
    with _withheld():
        return _written(node)


def hides(node: Any) -> bool:
    """Whether something below ``node`` is written otherwise than it is used."""
    return bool(written(node) != OmegaConf.to_container(node, resolve=True))


def masked(overrides: Sequence[str] | ListConfig) -> list[str]:
    """Overrides of a command line as they were typed, without what is secret in them.

    Those in Hydra's own config are nodes, and reading one would put a variable's value in its place.
    """
    typed = OmegaConf.to_container(overrides) if isinstance(overrides, ListConfig) else overrides
    return [_masked(override) for override in typed]  # type: ignore[arg-type, union-attr]


def redacted(text: str) -> str:
    """``text`` without values of the environment that a config read, and without passwords in URLs."""
    for value in sorted(_given, key=len, reverse=True):
        text = text.replace(value, _given[value])
    return _without_passwords(text)


def holds_password(text: str) -> bool:
    """Whether there is a password in a URL in it."""
    return (_USER_OF_URL.search(text) or _SETTING_OF_URL.search(text)) is not None


def shown(override: str) -> str:
    """As it may be shown: without its value, where that holds a password."""
    return f"{override.partition('=')[0]}={HIDDEN}" if holds_password(override) else override


def _without_passwords(text: str) -> str:
    return _SETTING_OF_URL.sub(rf"\1{HIDDEN}", _USER_OF_URL.sub(HIDDEN, text))


def _masked(override: str) -> str:
    key, equals, value = override.partition("=")
    if equals and _is_secret(key.lstrip("+~"), value):
        return f"{key}={HIDDEN}"
    inner = re.sub(  # of a dict that is given whole: {user: me, token: x}
        r"([{,]\s*['\"]?)([\w.]+)(['\"]?\s*:\s*)([^,{}\[\]]+)",
        lambda found: f"{found[1]}{found[2]}{found[3]}{HIDDEN if _is_secret(found[2], found[4]) else found[4]}",
        value,
    )
    return f"{key}{equals}{_without_passwords(inner)}"


def _is_secret(key: str, value: object) -> bool:
    """Whether ``value`` is to be hidden: nothing, a switch and what names a variable are not."""
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
        return _written(value)
    return HIDDEN if _is_secret(str(key), value) else _plain(value)


def _plain(value: Any) -> Any:
    """A value that containers hold, without passwords in URLs."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return _without_passwords(value) if isinstance(value, str) else value


register()
