"""Facts about the machine, kept with every run so that its numbers can be placed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, cores, threads, accelerators and versions, as JSON values."""
    import torch

    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": _usable_cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "whence": whence_version(),
    }


def whence_version() -> str:
    """The installed version; "unknown" where the package runs from a folder."""
    try:
        return importlib.metadata.version("whence")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def cpu_model() -> str:
    """The processor's name as the system gives it; its architecture where it gives none."""
    for read in (_from_proc, _from_sysctl):
        try:
            name = read()
        except (OSError, subprocess.SubprocessError):
            continue
        if name:
            return name
    return platform.processor() or platform.machine()


def _from_proc() -> str:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""


def _from_sysctl() -> str:
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # a container or a batch system may allow fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
