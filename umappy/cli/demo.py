"""`umappy demo`: sorts a file larger than memory, proves it, and compares with np.memmap under the same limit."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from umappy._sort.scratch import free_bytes
from umappy.cli.cgroup import CgroupError, MemoryCgroup, drop_page_cache, open_cgroup
from umappy.cli.data import Digest, check_file, write_random
from umappy.cli.failure import CommandError
from umappy.cli.table import print_table
from umappy.cli.trial import INTERPRETER_BYTES, Figures, Stopped, run_trial
from umappy.config import config
from umappy.sizes import format_size, parse_size

# np.memmap's sort is stopped when it takes so many times as long as umappy's, and a while.
PATIENCE_FACTOR = 20
PATIENCE_SECONDS = 120.0
MEMORY_MIN = 4 << 20


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="sort a file larger than memory and show what it took",
        description="Makes a file of random int64, sorts it through a small budget of memory, verifies order and "
        "values, does the same with numpy.memmap(...).sort() under the same limit, and prints what each took.",
    )
    parser.add_argument("--size", default="2GiB", help="of the file (default: %(default)s)")
    parser.add_argument("--memory", default="256MiB", help="the budget (default: %(default)s)")
    parser.add_argument("--dir", help="folder for the file and for scratch (default: umappy's folder for scratch)")
    parser.add_argument("--no-memmap", action="store_true", help="leave the comparison out")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Outcome:
    """A sort and whether its result is right; None: there is no result."""

    figures: Figures | Stopped
    is_ordered: bool | None = None
    is_complete: bool | None = None


def run(arguments: argparse.Namespace) -> int:
    size = parse_size(arguments.size, "--size") // 8 * 8
    memory = parse_size(arguments.memory, "--memory")
    folder = os.path.abspath(arguments.dir or config.temp_dir)
    _check(size, memory, folder)
    with tempfile.TemporaryDirectory(prefix="umappy-demo-", dir=folder) as inside:
        path = os.path.join(inside, "numbers")
        seed = secrets.randbits(64)
        ours = _measure("umappy", path, size, memory, seed, None)
        theirs = None
        if not arguments.no_memmap:
            seconds = ours.figures.seconds if isinstance(ours.figures, Figures) else 0.0
            theirs = _measure("memmap", path, size, memory, seed, PATIENCE_SECONDS + PATIENCE_FACTOR * seconds)
    _print_outcomes(ours, theirs, size, memory, folder)
    if not (ours.is_ordered and ours.is_complete):
        raise CommandError("the sorted file is wrong: this is a bug in umappy, please report it")
    return 0


def _check(size: int, memory: int, folder: str) -> None:
    if size < 16:
        raise CommandError(f"--size is {size}: give at least 16 bytes, such as 2GiB", 2)
    if memory < MEMORY_MIN:
        raise CommandError(f"--memory is {format_size(memory)}: give at least {format_size(MEMORY_MIN)}", 2)
    if not os.path.isdir(folder):
        raise CommandError(f"--dir is {folder!r}: there is no such folder", 2)
    needed = 2 * size + (16 << 20)
    if (free := free_bytes(folder)) < needed:
        raise CommandError(
            f"{folder} has {format_size(free)} free, and the demo needs {format_size(needed)}, for the file and as "
            "much scratch: give another folder with --dir, or a smaller --size"
        )


def _measure(kind: str, path: str, size: int, memory: int, seed: int, timeout_seconds: float | None) -> Outcome:
    print(f"writing {format_size(size)} of random int64", flush=True)
    before = write_random(path, size, seed)
    with _open_limit(memory, kind) as group:
        _drop_page_cache()
        print(f"sorting with {'umappy.sort' if kind == 'umappy' else 'numpy.memmap(...).sort()'}", flush=True)
        figures = run_trial(kind, path, memory, group, timeout_seconds=timeout_seconds)
    if isinstance(figures, Stopped):
        return Outcome(figures)
    print("checking the result", flush=True)
    return _check_result(path, before, figures)


def _check_result(path: str, before: Digest, figures: Figures) -> Outcome:
    after = check_file(path)
    return Outcome(figures, after.is_ordered, after.digest == before)


@contextlib.contextmanager
def _open_limit(memory: int, kind: str) -> Iterator[MemoryCgroup | None]:
    with contextlib.ExitStack() as stack:
        group = None
        try:
            group = stack.enter_context(open_cgroup(memory + INTERPRETER_BYTES))
        except CgroupError as error:
            consequence = (
                "np.memmap then has all of the machine's memory as page cache, so the comparison is not a fair one"
                if kind == "memmap"
                else "umappy's own budget holds all the same"
            )
            print(f"no memory cgroup could be made ({error}): {consequence}", flush=True)
        yield group


def _drop_page_cache() -> None:
    if not drop_page_cache():
        print("the page cache could not be dropped (that takes root): part of the file is read from memory", flush=True)


def _print_outcomes(ours: Outcome, theirs: Outcome | None, size: int, memory: int, folder: str) -> None:
    outcomes = [ours] if theirs is None else [ours, theirs]
    header = ["", "umappy.sort", "np.memmap sort"][: 1 + len(outcomes)]
    columns = [_describe(outcome, size) for outcome in outcomes]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    limit = f"budget {format_size(memory)}, and {format_size(INTERPRETER_BYTES)} for the interpreter in the cgroup"
    print()
    print_table(f"{format_size(size)} of int64 in {folder}; {limit}", header, rows)
    if theirs is not None and isinstance(ours.figures, Figures) and isinstance(theirs.figures, Figures):
        print(f"umappy took {ours.figures.seconds:.1f} s, np.memmap {theirs.figures.seconds:.1f} s: "
              f"{theirs.figures.seconds / ours.figures.seconds:.1f} times as long")  # fmt: skip


def _describe(outcome: Outcome, size: int) -> dict[str, str]:
    figures = outcome.figures
    names = ("seconds", "GB/s", "peak resident", "peak of the cgroup", "faults", "bytes read", "bytes written")
    if isinstance(figures, Stopped):
        cells = [figures.reason, *["-"] * (len(names) - 1)]
    else:
        peak = figures.cgroup_peak_bytes
        cells = [
            f"{figures.seconds:.2f}",
            f"{size / 1e9 / figures.seconds:.2f}",
            format_size(figures.peak_bytes),
            "-" if peak is None else format_size(peak),
            f"{figures.faults:,}",
            format_size(figures.bytes_read),
            format_size(figures.bytes_written),
        ]
    answers = {None: "-", True: "yes", False: "NO"}
    checks = {"in order": answers[outcome.is_ordered], "same values": answers[outcome.is_complete]}
    return dict(zip(names, cells, strict=True)) | checks
