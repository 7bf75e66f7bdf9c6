"""The default number of threads, on artificial /sys and /proc trees."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_numba import threads
from mistral_portable_numba.threads import cpu_limit, default_threads, parse_cpus, physical_cores

CPU = "sys/devices/system/cpu"
CGROUP = "sys/fs/cgroup"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def cores(*lists: str, name: str = "core_cpus_list") -> dict[str, str]:
    """Topology files of cores, each given as a list of its CPUs."""
    return {f"{CPU}/cpu{cpu}/topology/{name}": cpus for cpus in lists for cpu in parse_cpus(cpus)}


def capacities(*values: int) -> dict[str, str]:
    return {f"{CPU}/cpu{cpu}/cpu_capacity": str(value) for cpu, value in enumerate(values)}


# --- CPU lists -----------------------------------------------------------------------------------------------------


def written(cpus: Sequence[int]) -> str:
    """A list of CPUs as Linux writes it, in ranges."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


@given(st.lists(st.integers(0, 300), unique=True), st.sampled_from(["", "\n"]))
def test_a_list_of_cpus_is_read_as_the_kernel_writes_it(cpus: list[int], end: str) -> None:
    assert parse_cpus(written(cpus) + end) == set(cpus)


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}), ("5", {5}), ("", set()), ("\n", set())]
)
def test_lists_of_cpus(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["many", "0-", "-3", "1;2"])
def test_invalid_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        parse_cpus(text)


# --- cores ---------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 12), ways=st.integers(1, 4), data=st.data())
def test_cpus_of_one_core_count_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, ways: int, data: st.DataObject
) -> None:
    siblings = [[core + way * count for way in range(ways)] for core in range(count)]  # numbered as on x86
    root = tree(tmp_path_factory.mktemp("root"), cores(*map(written, siblings)))
    mask = data.draw(st.sets(st.integers(0, count * ways - 1), min_size=1))
    assert physical_cores(mask, root) == len({cpu % count for cpu in mask})


def test_old_kernels_have_another_file_name(tmp_path: Path) -> None:
    root = tree(tmp_path, cores("0,2", "1,3", name="thread_siblings_list"))
    assert physical_cores({0, 1, 2, 3}, root) == 2


@pytest.mark.parametrize(
    "files",
    [
        {},
        cores("0-1"),
        cores("0-3") | {f"{CPU}/cpu2/topology/core_cpus_list": "two"},
        cores("0-3") | capacities(1, 2) | {f"{CPU}/cpu2/cpu_capacity": "fast"},
        cores("0-3") | {"sys/devices/cpu_core/cpus": "some"},
    ],
    ids=["no tree", "CPUs without a topology", "odd topology", "odd capacity", "odd hybrid"],
)
def test_every_cpu_counts_if_the_topology_is_unknown(tmp_path: Path, files: Mapping[str, str]) -> None:
    assert physical_cores({0, 1, 2, 3}, tree(tmp_path, files)) == 4


def test_intel_hybrids_use_their_performance_cores(tmp_path: Path) -> None:
    hybrid = {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"}
    root = tree(tmp_path, cores("0-1", "2-3", "4", "5", "6", "7") | hybrid)
    assert physical_cores(set(range(8)), root) == 2
    assert physical_cores({3, 4, 5}, root) == 1
    assert physical_cores({4, 5, 6}, root) == 3, "only slow ones are allowed"


def test_arm_uses_its_large_cores(tmp_path: Path) -> None:
    root = tree(tmp_path, cores(*map(str, range(8))) | capacities(325, 325, 325, 325, 828, 828, 828, 1024))
    assert physical_cores(set(range(8)), root) == 4
    assert physical_cores({0, 1, 7}, root) == 1
    assert physical_cores({0, 1}, root) == 2, "only small ones are allowed"


# --- cgroups -------------------------------------------------------------------------------------------------------

OWN = "proc/self/cgroup"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, math.inf),
        ({OWN: "0::/"}, math.inf),
        ({OWN: "0::/", f"{CGROUP}/cpu.max": "150000 100000"}, 1.5),
        ({OWN: "0::/a/b", f"{CGROUP}/a/b/cpu.max": "max 100000"}, math.inf),
        ({OWN: "0::/a/b", f"{CGROUP}/a/b/cpu.max": "max 100000", f"{CGROUP}/a/cpu.max": "50000 100000"}, 0.5),
        ({OWN: "0::/a/b", f"{CGROUP}/a/b/cpu.max": "300000 100000", f"{CGROUP}/a/cpu.max": "800000 100000"}, 3),
        ({OWN: "0::/a", f"{CGROUP}/b/cpu.max": "100000 100000"}, math.inf),
        ({OWN: "0::/host/name", f"{CGROUP}/cpu.max": "200000 100000"}, 2),
        ({OWN: "0::/../b", f"{CGROUP}/cpu.max": "200000 100000"}, 2),
        ({OWN: "1:cpu,cpuacct:/a\n0::/", f"{CGROUP}/unified/cpu.max": "400000 100000"}, 4),
        (
            {
                OWN: "2:memory:/m\n1:cpu,cpuacct:/a",
                f"{CGROUP}/cpu/a/cpu.cfs_quota_us": "250000",
                f"{CGROUP}/cpu/a/cpu.cfs_period_us": "100000",
                f"{CGROUP}/cpu/cpu.cfs_quota_us": "-1",
                f"{CGROUP}/cpu/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        ({OWN: "1:cpu:/a", f"{CGROUP}/cpu/cpu.cfs_quota_us": "100000"}, math.inf),
        ({OWN: "nonsense"}, math.inf),
        ({OWN: "0::/", f"{CGROUP}/cpu.max": "much"}, math.inf),
        ({OWN: "0::/", f"{CGROUP}/cpu.max": "100000 0"}, math.inf),
    ],
)
def test_the_smallest_limit_of_all_groups_counts(tmp_path: Path, files: Mapping[str, str], limit: float) -> None:
    assert cpu_limit(tree(tmp_path, files)) == limit


# --- together ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /sys")
@pytest.mark.parametrize(("quota", "expected"), [("max", 4), ("10000", 1), ("210000", 3), ("900000", 4)])
def test_linux_takes_the_smaller_of_cores_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    limit = {OWN: "0::/", f"{CGROUP}/cpu.max": f"{quota} 100000"}
    assert default_threads(tree(tmp_path, cores("0-1", "2-3", "4-5", "6-7") | limit)) == expected


@pytest.mark.parametrize(
    ("platform", "known", "expected"),
    [
        ("darwin", {"hw.perflevel0.physicalcpu": 4, "hw.physicalcpu": 8}, 4),
        ("darwin", {"hw.physicalcpu": 6}, 6),
        ("darwin", {}, 12),
        ("win32", {}, 6),
        ("freebsd14", {}, 12),
    ],
)
def test_other_systems(monkeypatch: pytest.MonkeyPatch, platform: str, known: Mapping[str, int], expected: int) -> None:
    def sysctl(name: str) -> Any:
        return known.get(name, 0)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(threads, "sysctl", sysctl)
    assert default_threads() == expected


def test_this_machine() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
