"""The memory of the machine that a process can have, in bytes: a container's, where that is less."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_GROUP_OF_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def total() -> int:
    """All memory, whoever uses it."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available() -> int:
    """Memory that is free, or could be made so at once: files that were read lie in it until it is needed."""
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _limits())]))


def _limits() -> Iterator[tuple[int, int]]:
    """Limits of the control groups of this process, and what is used of each."""
    for folder, names, cache in _groups():
        with suppress(OSError, ValueError, StopIteration):  # a group without a limit says "max", or has no such file
            limit, used = (int((folder / name).read_text()) for name in names)
            lines = (folder / "memory.stat").read_text().splitlines()
            idle = next(int(line.split()[1]) for line in lines if line.split()[:1] == [cache])
            yield limit, used - idle  # as Docker and Kubernetes count what a container works with


def _groups() -> Iterator[tuple[Path, tuple[str, str], str]]:
    """Folders of the groups, from the innermost on, with the names of their files and of an entry in ``memory.stat``.

    Limits of the groups that a group lies in hold for it too; where a container hides those, its own group is the root.
    """
    try:
        lines = _GROUP_OF_PROCESS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names, cache = _GROUPS, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            names, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
            root = _GROUPS / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        yield from ((group, names, cache) for group in (folder, *folder.parents) if group.is_relative_to(root))
