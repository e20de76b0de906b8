"""The memory limit of a contender: a cgroup where we may make one, a scope of the user's systemd where that makes one,
else none, which its samples say."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from umappy.cli.cgroup import CgroupError, MemoryCgroup, drop_page_cache, open_cgroup

Kind = Literal["cgroup", "systemd", "none"]
PROBE_BYTES = 256 << 20
PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Cap:
    """What holds a contender to `limit` bytes."""

    kind: Kind
    limit: int
    group: MemoryCgroup | None = None

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Returns the command line that runs `command` under the limit."""
        if self.group is not None:
            return self.group.wrap(command)
        return make_scope(self.limit, command) if self.kind == "systemd" else list(command)

    def read_peak(self) -> int | None:
        """Returns the most bytes charged; None where only the child can tell (a scope ends with it) or nobody."""
        return self.group.read_peak() if self.group is not None else None

    def read_shared_memory(self) -> int:
        """Returns the bytes of tmpfs that are charged to it."""
        if self.group is None:
            return 0
        rows = (line.split() for line in (self.group.folder / "memory.stat").read_text().splitlines())
        return sum(int(row[1]) for row in rows if row[0] == "shmem")


@contextlib.contextmanager
def open_cap(limit: int) -> Iterator[Cap]:
    """Makes a limit of `limit` bytes, of the best kind there is."""
    kind = find_kind()
    if kind == "cgroup":
        with open_cgroup(limit) as group:
            yield Cap(kind, limit, group)
    else:
        yield Cap(kind, limit)


@functools.cache
def find_kind() -> Kind:
    """Tries what there is, once a process, and says on stderr why nothing is capped where that is so."""
    try:
        with open_cgroup(PROBE_BYTES):
            return "cgroup"
    except CgroupError as error:
        reason = str(error)
    if shutil.which("systemd-run") is None:
        reason += "; no systemd-run"
    else:
        try:
            subprocess.run(
                make_scope(PROBE_BYTES, ["true"]), check=True, capture_output=True, text=True, timeout=PROBE_SECONDS
            )
            return "systemd"
        except subprocess.CalledProcessError as error:
            reason += f"; systemd-run: {error.stderr.strip()}"
        except subprocess.TimeoutExpired:
            reason += f"; systemd-run: no answer in {PROBE_SECONDS:.0f} s"
    print(f"NO MEMORY LIMIT, results are marked uncapped: {reason}", file=sys.stderr)
    return "none"


def make_scope(limit: int, command: Sequence[str]) -> list[str]:
    """Returns the command line that runs `command` in a scope of the user's own systemd."""
    limits = [f"--property=MemoryMax={limit}", "--property=MemorySwapMax=0"]
    return ["systemd-run", "--user", "--scope", "--quiet", "--collect", *limits, "--", *command]


def read_own_peak() -> int | None:
    """Returns the peak of the cgroup (version 2) that this process is in; None where the kernel does not tell."""
    try:
        path = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        return int(Path(f"/sys/fs/cgroup{path}/memory.peak").read_text())
    except (OSError, ValueError):
        return None


def forget_files(folder: str | None) -> None:
    """Empties the page cache; where only root may do that, at least of the files in `folder`."""
    if drop_page_cache() or folder is None:
        return
    for base, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(base, name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
