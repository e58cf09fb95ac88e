"""Passwords in the URLs of databases: found, and masked in overrides, texts and what a process shows of itself."""

import re
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from omegaconf import DictConfig, OmegaConf, flag_override

if TYPE_CHECKING:
    from sqlalchemy import URL

HIDDEN = "***"
_STORAGE = "hydra.sweeper.storage"
# A URL with a password: USER:PASSWORD@, or a setting of such a name. HOST:PORT/ is none, whatever follows.
_USER = re.compile(r"(?<=://)(?!(?:\[[^\]]*\]|[^/?#\s'\"@:]*):\d+[/?#])[^/?#\s'\"]*:[^\s'\"]*(?=@)")
_SETTING = re.compile(r"([?&;][^=&;\s]*(?:pass|pwd|secret|token)[^=&;\s]*=)[^&\s'\"]*", re.IGNORECASE)


def holds_password(text: str) -> bool:
    """Whether a URL in ``text`` holds a password."""
    return (_USER.search(text) or _SETTING.search(text)) is not None


def masked_text(text: str) -> str:
    """``text`` with every password in a URL masked, and the user's name before it."""
    return _SETTING.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, text))


def masked_override(override: str) -> str:
    """An override with its whole value masked, where that holds a password."""
    return f"{override.partition('=')[0]}={HIDDEN}" if holds_password(override) else override


def masked_message(message: str, url: "URL") -> str:
    """The message of a library on the database at ``url``, with the password masked in every form it may take."""
    secrets = [str(url.password or "")]
    for key, value in url.query.items():
        if _SETTING.search(f"?{key}="):
            secrets += [value] if isinstance(value, str) else value
    forms = {form for text in secrets for form in (text, quote(text), quote(text, safe=""), quote_plus(text)) if form}
    for form in sorted(forms, key=len, reverse=True):
        message = message.replace(form, HIDDEN)
    return message


def mask_process(config: DictConfig) -> bool:
    """Mask the password of a sweep's database in this process's arguments, with a warning, and in Hydra's config.

    Workers get the arguments of their controller, and W&B records those of a process.

    Returns:
        Whether the password was typed as an argument.
    """
    arguments = [masked_override(argument) if "hydra" in argument else argument for argument in sys.argv]
    if is_typed := arguments != sys.argv:
        sys.argv[:] = arguments
        print(
            f"warning: whoever may list this machine's processes can read the password in {_STORAGE}: leave "
            f"it out and keep it in ~/.pgpass, or write '{_STORAGE}=${{oc.env:NAME}}' and export NAME",
            file=sys.stderr,
        )
    with flag_override(config, ["readonly", "struct"], False):
        if isinstance(url := OmegaConf.select(config, _STORAGE), str) and holds_password(url):
            config.hydra.sweeper.storage = HIDDEN
        config.hydra.overrides.hydra = [masked_override(override) for override in config.hydra.overrides.hydra]
    return is_typed
