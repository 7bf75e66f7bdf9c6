"""The default number of threads: the fast physical cores that this process may use, within its cgroup's CPU limit.

A second thread on a core adds nothing where kernels keep the core's units busy, and a slow core makes fast ones wait.
"""

import math
import os
import sys
from collections.abc import Iterator, Set
from pathlib import Path, PurePosixPath

from mistral_portable_numba.sysctl import sysctl

__all__ = ["cpu_limit", "default_threads", "parse_cpus", "physical_cores"]

_ROOT = Path("/")


def default_threads(root: Path = _ROOT) -> int:
    """The number of fast physical cores for this process, at least 1.

    Linux: those in its affinity mask, at most the cgroup limit rounded up. macOS: the performance cores. Windows: half
    the logical CPUs, as it has no simple query for cores and most machines have two logical CPUs per core.
    """
    if sys.platform == "linux":
        return max(1, math.ceil(min(physical_cores(os.sched_getaffinity(0), root), cpu_limit(root))))
    logical = os.cpu_count() or 1
    if sys.platform == "darwin":
        return sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu") or logical
    return max(1, logical // 2) if sys.platform == "win32" else logical


def parse_cpus(text: str) -> set[int]:
    """The CPUs in a list as Linux writes it: "0-3,8" -> {0, 1, 2, 3, 8}. Raises ValueError for other text."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    return cpus


def physical_cores(cpus: Set[int], root: Path = _ROOT) -> int:
    """The number of fast cores that these CPUs are on; the number of CPUs if /sys does not tell."""
    try:
        devices = root / "sys/devices"
        return len({_siblings(devices / f"system/cpu/cpu{cpu}/topology") for cpu in _fast(cpus, devices)})
    except (OSError, ValueError):
        return len(cpus)


def _siblings(topology: Path) -> frozenset[int]:
    """The CPUs of a core. Linux before 5.2 has only the second file name."""
    names = (topology / "core_cpus_list", topology / "thread_siblings_list")
    return frozenset(parse_cpus(next((name for name in names if name.exists()), names[0]).read_text()))


def _fast(cpus: Set[int], devices: Path) -> Set[int]:
    """The performance cores among the CPUs if there are any, else all.

    On ARM, those with at least two thirds of the best capacity: the large and the largest cores, not the small ones.
    """
    performance = devices / "cpu_core/cpus"  # on Intel's hybrid CPUs
    if performance.exists():
        return cpus & parse_cpus(performance.read_text()) or cpus
    files = {cpu: devices / f"system/cpu/cpu{cpu}/cpu_capacity" for cpu in cpus}
    capacity = {cpu: int(file.read_text()) if file.exists() else 0 for cpu, file in files.items()}
    return {cpu for cpu in cpus if 3 * capacity[cpu] >= 2 * max(capacity.values())}


def cpu_limit(root: Path = _ROOT) -> float:
    """The smallest CPU limit of this process's cgroups, in CPUs; infinite if there is none or it cannot be read."""
    try:
        quotas = list(_quotas(root))
        return min((int(quota) / int(period) for quota, period in quotas if quota.isdigit()), default=math.inf)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quotas(root: Path) -> Iterator[tuple[str, str]]:
    """Quota and period of the process's cgroups and of their parents; "max" or "-1" is no limit.

    In a container the process's own group is often the root of the mounted tree, so missing folders are skipped.
    """
    mounts = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        group = PurePosixPath(name.lstrip("/"))
        for path in (group, *group.parents):
            if not controllers:  # version 2, alone or beside version 1
                for limit in (mounts / path / "cpu.max", mounts / "unified" / path / "cpu.max"):
                    if limit.exists():
                        quota, period = limit.read_text().split()
                        yield quota, period
            elif "cpu" in controllers.split(","):
                quota_file, period_file = (mounts / "cpu" / path / f"cpu.cfs_{word}_us" for word in ("quota", "period"))
                if quota_file.exists():
                    yield quota_file.read_text().strip(), period_file.read_text()
