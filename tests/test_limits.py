"""The cgroup cases are folders laid out like /proc and /sys; one test makes a real cgroup."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from umappy.limits import default_memory, find_memory_limit

GIB = 1 << 30
V1_UNLIMITED = 9223372036854771712


class Machine:
    """A root folder that looks like a machine with 64 GiB, 32 of them available."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemFree: 1000 kB\nMemAvailable: {32 << 20} kB\n")

    def join(self, membership: str, mounts: str) -> None:
        (self.root / "proc/self/cgroup").write_text(membership)
        (self.root / "proc/self/mountinfo").write_text(mounts)

    def add(self, folder: str, **files: object) -> Path:
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (path / name.replace("__", ".")).write_text(f"{content}\n")
        return path


V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_limit_no_cgroups_is_what_the_machine_has_available(machine: Machine) -> None:
    limit = find_memory_limit(machine.root)
    assert (limit.available, limit.source) == (32 * GIB, machine.root / "proc/meminfo")


def test_default_memory_is_half_of_the_limit(machine: Machine) -> None:
    assert default_memory(machine.root) == 16 * GIB


def test_limit_v2_is_that_of_our_cgroup_less_what_it_uses(machine: Machine) -> None:
    machine.join("0::/user/job\n", V2_MOUNT)
    folder = machine.add("sys/fs/cgroup/user/job", memory__max=4 * GIB, memory__high="max", memory__current=GIB)
    limit = find_memory_limit(machine.root)
    assert (limit.available, limit.source) == (3 * GIB, folder)


def test_limit_v2_page_cache_does_not_count_as_used(machine: Machine) -> None:
    machine.join("0::/job\n", V2_MOUNT)
    stat = f"anon {GIB}\nfile {2 * GIB}\nactive_file {GIB}\ninactive_file {GIB}\nshmem 0"
    machine.add("sys/fs/cgroup/job", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat=stat)
    assert find_memory_limit(machine.root).available == 3 * GIB


def test_limit_v2_tightest_level_above_us_counts(machine: Machine) -> None:
    machine.join("0::/a/b/c\n", V2_MOUNT)
    machine.add("sys/fs/cgroup/a/b/c", memory__max="max", memory__current=0)
    machine.add("sys/fs/cgroup/a/b", memory__max=8 * GIB, memory__current=0)
    tightest = machine.add("sys/fs/cgroup/a", memory__max=2 * GIB, memory__current=GIB // 2)
    machine.add("sys/fs/cgroup/a/sibling", memory__max=1, memory__current=0)
    limit = find_memory_limit(machine.root)
    assert (limit.available, limit.source) == (GIB + GIB // 2, tightest)


def test_limit_v2_high_counts_where_it_is_lower(machine: Machine) -> None:
    machine.join("0::/job\n", V2_MOUNT)
    machine.add("sys/fs/cgroup/job", memory__max=4 * GIB, memory__high=GIB, memory__current=0)
    assert find_memory_limit(machine.root).available == GIB


def test_limit_v2_used_up_gives_zero(machine: Machine) -> None:
    machine.join("0::/job\n", V2_MOUNT)
    machine.add("sys/fs/cgroup/job", memory__max=GIB, memory__current=2 * GIB)
    assert find_memory_limit(machine.root).available == 0


@pytest.mark.parametrize("path", ["/", "/../../elsewhere"])
def test_limit_v2_in_a_container_is_that_of_the_mount_point(machine: Machine, path: str) -> None:
    machine.join(f"0::{path}\n", V2_MOUNT)
    machine.add("sys/fs/cgroup", memory__max=GIB, memory__current=0)
    assert find_memory_limit(machine.root).available == GIB


def test_limit_v1_tightest_level_counts_without_its_page_cache(machine: Machine) -> None:
    machine.join("5:cpu,cpuacct:/other\n4:memory:/docker/x\n0::/\n", V1_MOUNT.format(root="/"))
    machine.add("sys/fs/cgroup/memory", memory__limit_in_bytes=V1_UNLIMITED, memory__usage_in_bytes=0)
    machine.add("sys/fs/cgroup/memory/docker", memory__limit_in_bytes=8 * GIB, memory__usage_in_bytes=0)
    stat = f"inactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file 0"
    machine.add(
        "sys/fs/cgroup/memory/docker/x",
        memory__limit_in_bytes=4 * GIB,
        memory__usage_in_bytes=2 * GIB,
        memory__stat=stat,
    )
    assert find_memory_limit(machine.root).available == 3 * GIB


def test_limit_v1_in_a_container_drops_the_part_of_the_path_that_is_mounted(machine: Machine) -> None:
    machine.join("4:memory:/docker/x/inner\n", V1_MOUNT.format(root="/docker/x"))
    machine.add("sys/fs/cgroup/memory", memory__limit_in_bytes=4 * GIB, memory__usage_in_bytes=0)
    machine.add("sys/fs/cgroup/memory/inner", memory__limit_in_bytes=GIB, memory__usage_in_bytes=0)
    assert find_memory_limit(machine.root).available == GIB


def test_limit_v1_path_outside_of_the_mount_uses_the_mount_point(machine: Machine) -> None:
    machine.join("4:memory:/elsewhere\n", V1_MOUNT.format(root="/docker/x"))
    machine.add("sys/fs/cgroup/memory", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=0)
    assert find_memory_limit(machine.root).available == 2 * GIB


def test_limit_v1_without_limits_is_the_machine(machine: Machine) -> None:
    machine.join("4:memory:/\n", V1_MOUNT.format(root="/"))
    machine.add("sys/fs/cgroup/memory", memory__limit_in_bytes=V1_UNLIMITED, memory__usage_in_bytes=GIB)
    assert find_memory_limit(machine.root).available == 32 * GIB


def test_limit_mount_point_with_a_blank_is_found(machine: Machine) -> None:
    machine.join("0::/\n", V2_MOUNT.replace("/sys/fs/cgroup", r"/mnt/c\040group"))
    machine.add("mnt/c group", memory__max=GIB, memory__current=0)
    assert find_memory_limit(machine.root).available == GIB


def test_limit_meminfo_without_available_raises_naming_the_remedy(machine: Machine) -> None:
    (machine.root / "proc/meminfo").write_text("MemTotal: 1000 kB\n")
    with pytest.raises(OSError, match="no line MemAvailable; set memory= or UMAPPY_MEMORY"):
        find_memory_limit(machine.root)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A real cgroup, in the version this machine has, limited to 512 MiB."""
    if os.geteuid() != 0:
        pytest.skip("making a cgroup needs root")
    v1 = Path("/sys/fs/cgroup/memory")
    if (v1 / "memory.limit_in_bytes").exists():
        folder, limit_file = v1 / f"umappy-test-{os.getpid()}", "memory.limit_in_bytes"
    else:
        root = Path("/sys/fs/cgroup")
        folder, limit_file = root / f"umappy-test-{os.getpid()}", "memory.max"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    if not (folder / limit_file).exists():
        # The root hands the controller to its children only when told to.
        (folder.parent / "cgroup.subtree_control").write_text("+memory")
    try:
        (folder / limit_file).write_text(str(512 << 20))
        yield folder
    finally:
        folder.rmdir()


def test_limit_in_a_real_cgroup_is_just_below_its_limit(cgroup: Path) -> None:
    code = (
        f"open({str(cgroup / 'cgroup.procs')!r}, 'w').write('0')\n"
        "from umappy.limits import find_memory_limit\n"
        "limit = find_memory_limit()\n"
        "print(limit.available, limit.source)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    available, source = output.split()
    assert source == str(cgroup)
    assert (512 - 64) << 20 < int(available) <= 512 << 20
