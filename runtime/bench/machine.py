"""The machine that numbers belong to: processor, memory, load, software."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    "stdeploy",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnxscript",
    "numba",
    "numpy",
)

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of CPU time in each period, or `max`; and the period."""
BUSY = 0.25
"""Load average per core above which others are at work."""


@dataclass(frozen=True)
class Machine:
    """What was found; None where the system does not tell. `load`: 1 minute average before the first turn."""

    date: str
    cpu: str
    cores: int
    governor: str | None
    load: float | None
    memory_bytes: int | None
    system: str
    python: str
    packages: dict[str, str]
    gpu: str | None = None

    @property
    def busy(self) -> bool:
        """Whether other work was running."""
        return self.load is not None and self.load > BUSY * self.cores

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Two lines for a reader."""
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.0f} GiB"
        governor = "" if self.governor is None else f", governor {self.governor}"
        load = "" if self.load is None else f", load {self.load:.1f}"
        gpu = "" if self.gpu is None else f"; {self.gpu}"
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        return [
            f"{self.cpu}, {self.cores} core{'s' if self.cores > 1 else ''}{memory}{governor}{load}{gpu}",
            f"{self.system}, Python {self.python}, {versions}; {self.date}",
        ]


def examine_machine(device: str = "cpu") -> Machine:
    """Look at this machine; the GPU only where it is to be used."""
    return Machine(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=_cpu(),
        cores=available_cores(),
        governor=_first(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        memory_bytes=_memory(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        gpu=None if device == "cpu" else _gpu(),
    )


def available_cores() -> int:
    """Cores that this process may use: no more than its container has time for, where that is limited (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = (_first(_QUOTA) or "").partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        return max(1, min(cores, -(-int(quota) // int(period))))
    return cores


def _first(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _cpu() -> str:
    for line in (_first(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Name and driver as nvidia-smi tells them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    lines = [line for line in done.stdout.splitlines() if "," in line]
    return (
        "; ".join("{}, driver {}".format(*(p.strip() for p in line.split(",")[:2])) for line in lines) or None
    )
