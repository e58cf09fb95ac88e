"""The Hugging Face hub: without a network what is missing is one error at once, and not half a minute of retries."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Literal

REACH_S = 3.0  # seconds within which the hub must answer
_REMEMBERED_S = 60  # seconds for which an answer, or its absence, is remembered
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def answers(timeout_s: float = REACH_S) -> bool:
    """Whether the hub can be reached; it is tried at most once a minute."""
    return _answers(timeout_s, int(time.monotonic() // _REMEMBERED_S))


@contextmanager
def reached() -> Iterator[None]:
    """Use only what earlier runs downloaded, where the hub does not answer."""
    with nullcontext() if answers() else offline():
        yield


@contextmanager
def offline() -> Iterator[None]:
    """No network for hub and datasets, which have no option for it: both read the environment, at import only.

    The environment is set for the processes that they start, and their constants for this one, which huggingface_hub
    looks up at every request (``is_offline_mode``) and datasets at every loading.
    """
    import datasets.config
    from accelerate.utils import patch_environment
    from huggingface_hub import constants

    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    with patch_environment(**dict.fromkeys(names, "1")), ExitStack() as stack:
        for module in (constants, datasets.config):
            for name in names:
                if hasattr(module, name):
                    stack.callback(setattr, module, name, getattr(module, name))
                    setattr(module, name, True)
        yield


def missing(name: str, kind: Literal["model", "dataset"], error: Exception, *, key: str) -> str:
    """Why a model or dataset is missing, and the way out, in one line.

    Args:
        name: Id on the hub, or path of a folder that does not exist.
        kind: Whether the name is that of a model or of a dataset.
        error: Error that the library raised.
        key: Config key that takes a folder instead.
    """
    from huggingface_hub import constants

    if not _ID.fullmatch(name):
        return f"there is no such folder; {key} takes a folder or a hub id such as 'name' or 'owner/name'"
    if answers():
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return f"check the name at {constants.ENDPOINT}, and log in by `hf auth login` if it is not public ({why})"
    option = "" if kind == "model" else " --repo-type dataset"
    return (
        f"{unreachable()}, and no earlier run downloaded it. Where there is a network, run `hf download {name}{option} "
        f"--local-dir FOLDER`, copy that folder here and give it as {key}; or copy that machine's HF_HOME folder, "
        "set HF_HOME to it and HF_HUB_OFFLINE=1"
    )


def unreachable() -> str:
    """Why the hub does not answer."""
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"


@cache
def _answers(timeout_s: float, minute: int) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except Exception:  # whatever the transport raises, of whichever library: there is no way there
        return False
    return True
