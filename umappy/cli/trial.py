"""One sort of an int64 file in a process of its own, under a memory limit, and what it took.

`run_trial` starts this module as a program; it prints its figures as one line of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import umappy
from umappy.cli.cgroup import MemoryCgroup
from umappy.cli.failure import CommandError

# For the interpreter, numpy and the stacks of threads, beside the budget.
INTERPRETER_BYTES = 64 << 20
STOP_SECONDS = 10.0
KINDS = ("umappy", "memmap")


@dataclass(frozen=True)
class Figures:
    """What one sort took. Bytes read and written, and faults, are the pager's, or the kernel's for np.memmap."""

    seconds: float  # including that the result is on the disk
    peak_bytes: int  # most resident while sorting, less what was before: VmHWM; includes mapped page cache
    cgroup_peak_bytes: int | None
    faults: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class Stopped:
    """A sort that was given up."""

    reason: str


def run_trial(
    kind: str, path: str, memory: int, group: MemoryCgroup | None, *, timeout_seconds: float | None = None
) -> Figures | Stopped:
    """Sorts the file at `path` in place, by umappy.sort through `memory` bytes ("umappy") or np.memmap's ("memmap").

    Stopped when the child was killed for its memory or took longer than `timeout_seconds`; CommandError when it failed.
    """
    command = [sys.executable, "-P", "-m", __name__, kind, path, str(memory)]
    with _start(group.wrap(command) if group else command) as child:
        try:
            out, errors = child.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return Stopped(f"stopped after {timeout_seconds:.0f} s")
    if child.returncode == -signal.SIGKILL:
        return Stopped("killed: out of memory")
    if child.returncode:
        raise CommandError(f"the sort by {kind} failed ({child.returncode}): {errors.strip() or 'it said nothing'}")
    figures = Figures(**json.loads(out))
    return dataclasses.replace(figures, cgroup_peak_bytes=group.read_peak()) if group else figures


@contextlib.contextmanager
def _start(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A child that does not outlive the block, in a session of its own: Ctrl-C is the parent's to handle."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.communicate(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()


def read_status(field: str) -> int:
    """Returns a field of /proc/self/status in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


def sort_by_umappy(path: str, memory: int) -> Figures:
    before = read_status("VmRSS")
    started = time.perf_counter()
    with umappy.Pager(memory=memory) as pager:
        with umappy.umap(path, mode="r+", pager=pager) as region:
            umappy.sort(np.frombuffer(region, np.int64), progress=False)
        stats = pager.stats()
    return Figures(
        seconds=time.perf_counter() - started,
        peak_bytes=read_status("VmHWM") - before,
        cgroup_peak_bytes=None,
        faults=stats.read_faults + stats.write_faults + stats.protect_faults,
        bytes_read=stats.bytes_read,
        bytes_written=stats.bytes_written,
    )


def sort_by_memmap(path: str) -> Figures:
    before, faults, moved = read_status("VmRSS"), _count_faults(), _count_bytes()
    started = time.perf_counter()
    mapped = np.memmap(path, np.int64, mode="r+")
    mapped.sort()
    mapped.flush()
    seconds = time.perf_counter() - started
    read, written = (after - earlier for after, earlier in zip(_count_bytes(), moved, strict=True))
    return Figures(seconds, read_status("VmHWM") - before, None, _count_faults() - faults, read, written)


def _count_faults() -> int:
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[7]) + int(fields[9])  # minor and major


def _count_bytes() -> tuple[int, int]:
    with open("/proc/self/io") as file:
        rows = dict(line.split(": ") for line in file)
    return int(rows["read_bytes"]), int(rows["write_bytes"])


def main(kind: str, path: str, memory: str) -> None:
    figures = sort_by_umappy(path, int(memory)) if kind == "umappy" else sort_by_memmap(path)
    print(json.dumps(dataclasses.asdict(figures)))


def _end_quietly(kind: type[BaseException], error: BaseException, frames: Any) -> None:
    notes = "; ".join(getattr(error, "__notes__", []))
    print(f"{kind.__name__}: {error}" + (f" ({notes})" if notes else ""), file=sys.stderr)


if __name__ == "__main__":
    sys.excepthook = _end_quietly
    main(*sys.argv[1:])
