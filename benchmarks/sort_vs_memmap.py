"""Sorting int64 larger than memory: umappy.sort against numpy.memmap(...).sort(), under the same memory limit.

Both run in turn, each in a process of its own in a fresh memory cgroup, on the same random numbers, with the page
cache dropped before; every result is checked. Needs root, for the cgroup and for the device (--dir names a folder
instead).

    python benchmarks/sort_vs_memmap.py                # 2 GiB in a cgroup of 512 MiB, three rounds
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile

from harness.errors import ContenderError
from harness.fast_device import open_fast_device
from rows.sort import sort_once
from umappy.cli.table import print_table
from umappy.cli.trial import KINDS, Figures
from umappy.sizes import format_size, parse_size

# Of the cgroup, for the interpreter, numpy, and the page cache of their files.
OTHER_BYTES = 128 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2GiB", help="of the file (default: %(default)s)")
    parser.add_argument("--limit", default="512MiB", help="of the cgroup (default: %(default)s)")
    parser.add_argument("--memory", help="umappy's budget (default: the limit less 128 MiB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", help="folder to work in (default: a fast device made for this)")
    arguments = parser.parse_args()
    size, limit = parse_size(arguments.size, "--size") // 8 * 8, parse_size(arguments.limit, "--limit")
    memory = parse_size(arguments.memory, "--memory") if arguments.memory else limit - OTHER_BYTES
    with contextlib.ExitStack() as stack:
        # The file, as much scratch, and what ext4 needs itself.
        folder = arguments.dir or stack.enter_context(open_fast_device(2 * size + size // 4 + (256 << 20)))
        inside = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        path = os.path.join(inside, "numbers")
        rounds = [measure_round(path, size, memory, limit, seed) for seed in range(arguments.rounds)]
    print_rounds(rounds, size, memory, limit)
    return 0


def measure_round(path: str, size: int, memory: int, limit: int, seed: int) -> dict[str, Figures]:
    """Returns the figures of each kind on the same numbers."""
    figures = {}
    for kind in KINDS:
        try:
            figures[kind] = sort_once(kind, path, size, memory, limit, seed)
        except ContenderError as error:
            sys.exit(str(error))
        print(f"round {seed + 1}, {kind}: {figures[kind].seconds:.2f} s", flush=True)
    return figures


def print_rounds(rounds: list[dict[str, Figures]], size: int, memory: int, limit: int) -> None:
    rows = []
    for number, figures in enumerate(rounds, 1):
        ours, theirs = figures["umappy"], figures["memmap"]
        rows.append(
            [str(number), f"{ours.seconds:.2f}", f"{theirs.seconds:.2f}", f"{theirs.seconds / ours.seconds:.2f}"]
        )
    medians = [statistics.median(float(row[column]) for row in rows) for column in (1, 2, 3)]
    rows.append(["median", *(f"{median:.2f}" for median in medians)])
    title = f"{format_size(size)} of int64 in a cgroup of {format_size(limit)}, umappy's budget {format_size(memory)}"
    print()
    print_table(title, ["round", "umappy, s", "np.memmap, s", "times"], rows)
    ours = rounds[-1]["umappy"]
    peak = "-" if ours.cgroup_peak_bytes is None else format_size(ours.cgroup_peak_bytes)
    print(
        f"umappy, last round: peak resident {format_size(ours.peak_bytes)}, of the cgroup {peak}; "
        f"read {ours.bytes_read / size:.2f} times, written {ours.bytes_written / size:.2f} times the file; "
        f"{ours.faults} faults"
    )


if __name__ == "__main__":
    sys.exit(main())
