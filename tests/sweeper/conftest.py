"""Workers with nothing to train: they are told what to do by the value of ``x``."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from slimexp.sweeper.settings import Settings
from slimexp.sweeper.space import Space
from slimexp.sweeper.sweep import Sweep
from slimexp.sweeper.worker import Job, Outcome

FAKE = """
import errno, os, signal, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).parent

def prepare(threads):
    return run

def run(overrides):
    given = dict(line.split("=") for line in overrides)
    with open(Path(__file__).with_name("ran.txt"), "a") as file:
        file.write(" ".join(overrides) + "\\n")
    print("at work on", given["x"])
    x = given["x"]
    if x == "nan":
        return {"cer": float("nan"), "disk_mb": 1.0}
    if x == "wrong":
        raise ValueError("x is wrong")
    if x == "hopeless":
        from slimexp.record.stage import Stopped
        raise Stopped("distill was stopped")
    if x == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if x == "full" and not (HERE / "freed").exists():
        raise RuntimeError("cannot save") from OSError(errno.ENOSPC, "No space left on device")
    if x == "memory" and not (HERE / "freed").exists():
        raise MemoryError
    if x == "flaky" and not (HERE / "flaky").exists():
        (HERE / "flaky").touch()
        os.kill(os.getpid(), signal.SIGTERM)
    if x == "endless":
        child = subprocess.Popen(["sleep", "600"])
        (HERE / "pids.partial").write_text(f"{os.getpid()} {child.pid}")
        os.replace(HERE / "pids.partial", HERE / "pids")
        child.wait()
    if x == "told":
        print(sys.argv, Path("/proc/self/cmdline").read_bytes(), dict(os.environ))
    if x == "fixed" and not (HERE / "freed").exists():
        raise ValueError("a file is missing")
    if x in ("full", "memory", "flaky", "told", "fixed"):
        x = 7
    if x == "slow":
        time.sleep(1.0)
        x = 50
    size = float(given.get("y", 1))
    return {"cer": (float(x) - 2) ** 2 / size + float(given.get("seed", 0)), "disk_mb": size}
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a fake worker; ``ran.txt`` beside it lists what ran."""
    (tmp_path / "fake_worker.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("fake_worker", None)
    import fake_worker  # type: ignore[import-not-found]

    return fake_worker


@pytest.fixture
def make(fake: Any, tmp_path: Path) -> Callable[..., Sweep]:
    """Command line (and settings) -> a sweep with fake workers."""

    def build(*overrides: str, **settings: Any) -> Sweep:
        defaults: dict[str, Any] = {
            "objectives": {"cer": "min", "disk_mb": "min"}, "limits": {}, "sampler": None, "trials": None, "seeds": [],
            "storage": None, "workers": 2, "threads": 1, "fail_fast": False, "max_failures": None,
        }  # fmt: skip
        place = {name: settings.pop(name) for name in ("folder", "content", "fixed", "judge") if name in settings}
        return Sweep(
            space=Space.parse(overrides),
            settings=Settings(**{**defaults, **settings}),
            prepare=fake.prepare,
            **{"folder": tmp_path / "sweep", **place},
        )

    return build


class Here:
    """A pool that does its jobs in this process; ``ran`` lists them."""

    def __init__(self, ran: list[str], **settings: Any) -> None:
        self.ran, self._jobs = ran, list[Job]()

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        pass

    @property
    def free(self) -> int:
        return 1 - len(self._jobs)

    @property
    def busy(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def finished(self) -> Iterator[tuple[Job, Outcome]]:
        job = self._jobs.pop()
        x = next(word for word in job.overrides[0] if word.startswith("x=")).removeprefix("x=")
        self.ran.append(x)
        yield job, Outcome(({"cer": (float(x) - 2) ** 2, "disk_mb": 5 - float(x)},), None, 0.0)


@pytest.fixture
def here() -> type[Here]:
    """Makes a pool without processes."""
    return Here


@pytest.fixture
def ran(tmp_path: Path) -> Callable[[], list[str]]:
    """Command lines that workers were given so far."""
    file = tmp_path / "ran.txt"
    return lambda: file.read_text().splitlines() if file.exists() else []
