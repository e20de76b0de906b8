"""A fresh memory cgroup for a child process, in version 1 or 2 of the kernel's hierarchy."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
REMOVE_SECONDS = 5.0


class CgroupError(Exception):
    """No memory cgroup can be made; the message says why."""


@dataclass(frozen=True)
class MemoryCgroup:
    """A memory cgroup with a limit."""

    folder: Path
    peak_file: str

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Returns a command line that enters the cgroup and then becomes `command`, so that all of it is counted."""
        return ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.folder), *command]

    def read_peak(self) -> int | None:
        """Returns the most bytes ever charged, page cache included; None where the kernel does not tell (5.18)."""
        try:
            return int((self.folder / self.peak_file).read_text())
        except (OSError, ValueError):
            return None


@contextlib.contextmanager
def open_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """Makes a cgroup of `limit` bytes below our own or the topmost one, and removes it with the block.

    CgroupError where that is not allowed.
    """
    group = _make(limit)
    try:
        yield group
    finally:
        deadline = time.monotonic() + REMOVE_SECONDS  # processes that ended leave it a moment later
        while time.monotonic() < deadline:
            try:
                group.folder.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def _make(limit: int) -> MemoryCgroup:
    name = f"umappy-{os.getpid()}-{time.monotonic_ns()}"
    reasons = []
    for parent in _find_parents():
        folder = parent / name
        is_first_version = (parent / "memory.limit_in_bytes").exists()
        try:
            if not is_first_version:
                (parent / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            if is_first_version:
                (folder / "memory.limit_in_bytes").write_text(str(limit))
                return MemoryCgroup(folder, "memory.max_usage_in_bytes")
            (folder / "memory.max").write_text(str(limit))
            return MemoryCgroup(folder, "memory.peak")
        except OSError as error:
            folder.rmdir()
            reasons.append(f"{folder}: {error.strerror}")
    raise CgroupError("; ".join(reasons) or f"no memory controller below {MOUNT}")


def _find_parents() -> list[Path]:
    """The cgroups a new one may be made in, the likeliest first."""
    roots = [root for root in (MOUNT / "memory", MOUNT) if (root / "cgroup.procs").exists()]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                roots += [
                    root / path.lstrip("/") for root in roots if path != "/" and (root / path.lstrip("/")).is_dir()
                ]
    return [root for root in roots if (root / "memory.limit_in_bytes").exists() or _has_controller(root)]


def _has_controller(folder: Path) -> bool:
    try:
        return "memory" in (folder / "cgroup.controllers").read_text().split()
    except OSError:
        return False


def drop_page_cache() -> bool:
    """Writes everything out and empties the page cache; False where that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True
