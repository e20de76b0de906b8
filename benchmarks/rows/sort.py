"""Sorting random int64 larger than memory in place. The contenders are those of `umappy demo`."""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Callable

from harness.bench import Bench
from harness.child import Meter
from harness.errors import ContenderError
from harness.figures import seconds_side
from harness.result import Result, Target, compare, divide
from harness.rounds import Run, alternate
from harness.sample import Sample
from harness.trial import TIMEOUT_SECONDS
from umappy.cli.cgroup import drop_page_cache, open_cgroup
from umappy.cli.data import Check, Digest, check_file, write_random
from umappy.cli.failure import CommandError
from umappy.cli.trial import Figures, Stopped, run_trial, sort_by_memmap, sort_by_umappy
from umappy.sizes import format_size

SEED = 4


def sort_once(kind: str, path: str, size: int, memory: int, limit: int, seed: int) -> Figures:
    """Writes random numbers and sorts them by "umappy" or "memmap"; ContenderError where that fails or sorts wrong."""
    before = write_random(path, size, seed)
    if not drop_page_cache():
        raise PermissionError("cannot drop the page cache: run as root")
    with open_cgroup(limit) as group:
        try:
            result = run_trial(kind, path, memory, group, timeout_seconds=TIMEOUT_SECONDS)
        except CommandError as error:
            raise ContenderError(str(error)) from None
    after = check_file(path)
    if isinstance(result, Stopped):
        raise ContenderError(f"{kind}: {result.reason}")
    if not after.is_ordered or after.digest != before:
        raise ContenderError(f"{kind}: the sorted file is wrong")
    return result


def run(kind: str, path: str, size: int, memory: int, limit: int) -> Sample:
    """CPU seconds are of the child's whole life."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = sort_once(kind, path, size, memory, limit, SEED)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Sample(
        seconds=figures.seconds,
        user_seconds=after.ru_utime - before.ru_utime,
        system_seconds=after.ru_stime - before.ru_stime,
        bytes_read=figures.bytes_read,
        bytes_written=figures.bytes_written,
        cgroup_peak_bytes=figures.cgroup_peak_bytes,
        values={"faults": figures.faults, "peak_bytes": figures.peak_bytes},
    )


def sort_umappy(meter: Meter, path: str, memory: int) -> dict[str, float]:
    with meter:
        figures = sort_by_umappy(path, memory)
    return {"faults": figures.faults}


def sort_memmap(meter: Meter, path: str) -> dict[str, float]:
    with meter:
        figures = sort_by_memmap(path)
    return {"faults": figures.faults}


def check_after(run: Run, path: str, check: Callable[[str], Check], before: Digest) -> Run:
    """Each run must leave the numbers that there were, sorted, at `path`."""

    def checked() -> Sample:
        sample = run()
        after = check(path)
        if not after.is_ordered or after.digest != before:
            raise ContenderError("wrong result: these are not the numbers that there were, sorted")
        return sample

    return checked


def measure(bench: Bench) -> list[Result]:
    if bench.fast is None:
        return []
    size = bench.size // 2
    path = os.path.join(bench.fast.folder, "to-sort")
    make = functools.partial(run, path=path, size=size, memory=bench.memory, limit=bench.limit)
    try:
        rounds = alternate(
            {"umappy": functools.partial(make, "umappy"), "np.memmap": functools.partial(make, "memmap")}, bench.rounds
        )
    finally:
        if os.path.exists(path):
            os.unlink(path)
    work = f"sort of {format_size(size)}"
    peer, ours = seconds_side("np.memmap"), seconds_side("umappy")
    return [compare(work, "fast", rounds, peer, ours, divide, Target("at least", 5))]
