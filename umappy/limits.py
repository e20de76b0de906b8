"""How much memory there is for us: what the cgroups above this process and the machine can still give.

cgroups nest, and the tightest level counts, so every level from our own up to the mounted root is asked, in version 1
and version 2 alike. What a level can give is its limit less what is used, page cache not counted as used: the kernel
takes that back. In a container the files at the mount point are the container's own; the path in /proc/self/cgroup
may then lie outside of what is mounted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Version 1 writes "no limit" as the largest multiple of the page size below 2**63.
UNLIMITED = 1 << 62


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that can still be given, and by whom: a cgroup's folder or /proc/meminfo."""

    available: int
    source: Path


@dataclass(frozen=True)
class _Hierarchy:
    """The memory controller of one cgroup version: its file names, and the field of memory.stat that is page cache."""

    limit_files: tuple[str, ...]
    usage_file: str
    cache_fields: tuple[str, ...]


# memory.high throttles where memory.max kills; neither is to be reached. In version 1 only the totals include the
# levels below.
_VERSION_1 = _Hierarchy(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)
_VERSION_2 = _Hierarchy(("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file"))


def find_memory_limit(root: Path = Path("/")) -> MemoryLimit:
    """Returns the tightest limit above this process. `root` is where /proc and /sys are looked for."""
    limits = [_read_machine(root), *_read_cgroups(root)]
    return min(limits, key=lambda limit: limit.available)


def default_memory(root: Path = Path("/")) -> int:
    """Returns the default budget in bytes: half of what can be given, so that the program itself has the other half."""
    return find_memory_limit(root).available // 2


def _read_machine(root: Path) -> MemoryLimit:
    path = root / "proc/meminfo"
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return MemoryLimit(int(rest.split()[0]) * 1024, path)
    raise OSError(f"{path}: no line MemAvailable; set memory= or UMAPPY_MEMORY")


def _read_cgroups(root: Path) -> Iterator[MemoryLimit]:
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = list(_read_mounts(root))
    except OSError:
        return  # a kernel without cgroups, or a /proc that hides them
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":
            hierarchy, kind = _VERSION_2, "cgroup2"
        elif "memory" in controllers.split(","):
            hierarchy, kind = _VERSION_1, "cgroup"
        else:
            continue
        for mount_kind, options, mount_root, mount_point in mounts:
            if mount_kind == kind and (kind == "cgroup2" or "memory" in options):
                for folder in _list_levels(mount_point, mount_root, path):
                    if (limit := _read_level(folder, hierarchy)) is not None:
                        yield limit


def _read_mounts(root: Path) -> Iterator[tuple[str, list[str], PurePosixPath, Path]]:
    """Yields file system type, super block options, the folder mounted and the mount point (proc(5), mountinfo)."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), right.split()[:3]
        if kind in {"cgroup", "cgroup2"}:
            point = fields[4].encode().decode("unicode_escape")  # octal escapes for blanks
            yield kind, options.split(","), PurePosixPath(fields[3]), root / point.lstrip("/")


def _list_levels(mount_point: Path, mount_root: PurePosixPath, path: str) -> Iterator[Path]:
    """Yields the folders from our own cgroup up to the mount point."""
    try:
        parts = PurePosixPath(path).relative_to(mount_root).parts
    except ValueError:
        parts = ()
    if ".." in parts:  # the cgroup lies outside of this cgroup namespace
        parts = ()
    for length in range(len(parts), -1, -1):
        yield mount_point.joinpath(*parts[:length])


def _read_level(folder: Path, hierarchy: _Hierarchy) -> MemoryLimit | None:
    """What this level can still give; None when it sets no limit or is gone."""
    limits = [limit for name in hierarchy.limit_files if (limit := _read_number(folder / name)) is not None]
    usage = _read_number(folder / hierarchy.usage_file)
    if not limits or usage is None or min(limits) >= UNLIMITED:
        return None
    limit = min(limits)
    return MemoryLimit(min(limit, max(0, limit - usage + _read_cache(folder, hierarchy))), folder)


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _read_cache(folder: Path, hierarchy: _Hierarchy) -> int:
    try:
        rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(row[1]) for row in rows if row[0] in hierarchy.cache_fields)
    except OSError:
        return 0
