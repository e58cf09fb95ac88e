"""What a run depends on besides its configuration: code, versions of packages, and hardware."""

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from slimexp.host import working_copy

PACKAGES = (
    "slimexp",
    "torch",
    "transformers",
    "tokenizers",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "wandb",
    "lm_eval",
    "datasets",
    "safetensors",
    "compressed-tensors",
    "numpy",
)


def environment() -> dict[str, Any]:
    """What a run depends on besides its configuration: ``git``, ``versions`` and ``hardware``, as in ``Record``."""
    return {"git": working_copy.state(), "versions": _versions(), "hardware": _hardware()}


def _versions() -> dict[str, str]:
    """Versions of Python and of the installed packages among ``PACKAGES``."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, Any]:
    """CPU model, physical and logical cores, threads that torch uses, names of GPUs, memory in GB (10^9 bytes)."""
    import psutil

    torch = sys.modules.get("torch")  # a process without torch uses neither its threads nor a GPU
    gpus = range(torch.cuda.device_count()) if torch else ()
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "logical_cores": psutil.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": [torch.cuda.get_device_name(index) for index in gpus] if torch else [],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def _cpu() -> str:
    """Name of the processor, as the operating system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
