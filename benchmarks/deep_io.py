"""What a disk gives at a depth, and what asking costs: threads that pread, Linux AIO, io_uring.

    python benchmarks/deep_io.py random                  # also: random64, sequential, page, single
    python benchmarks/deep_io.py single --dir /mnt/nvme

Reads with O_DIRECT from a file made for it and deleted afterwards. All ways take turns, in rounds; each figure is the
median of them. Without --dir both of the machine's disk (--disk) and a fast device (root) are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fast_device import open_fast_device

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FILE_BYTES = 2 * GIB
SINGLE_CALLS = {
    "direct-pread": 2000,
    "direct-ring": 2000,
    "pread-hit": 20000,
    "nowait-hit": 20000,
    "nowait-miss": 200,
    "nowait-miss-no-read-ahead": 200,
    "cachestat-hit": 20000,
    "cachestat-hit-2M": 5000,
    "cachestat-cold": 20000,
    "cachestat-cold-2M": 20000,
}


@dataclass(frozen=True)
class Way:
    """How `depth` requests are kept in flight: by so many threads, in such calls."""

    name: str
    call: str
    threads: int | None  # None: as many as the depth

    def count_threads(self, depth: int) -> int:
        return min(self.threads or depth, depth)


PREAD = Way("pread", "pread", None)
WAYS = (
    PREAD,
    Way("aio, 1 thread", "aio", 1),
    Way("aio, 2 threads", "aio", 2),
    Way("io_uring, 1 thread", "ring", 1),
    Way("io_uring, 2 threads", "ring", 2),
    Way("io_uring by batches, 1 thread", "ring-batch", 1),
    Way("io_uring by batches, 2 threads", "ring-batch", 2),
    Way("io_uring registered, 1 thread", "ring-fixed", 1),
)


@dataclass(frozen=True)
class Plan:
    blocks: tuple[int, ...]
    order: str
    depths: tuple[int, ...]
    ways: tuple[Way, ...] = WAYS
    work_ns: int = 0


PLANS = {
    "random": Plan((4 * KIB,), "random", (1, 4, 16, 32, 64, 128)),
    "random64": Plan((64 * KIB,), "random", (1, 4, 16, 32, 64)),
    "sequential": Plan((MIB, 2 * MIB), "sequential", (1, 2, 4, 8)),
    "page": Plan((4 * KIB,), "random", (4, 8, 16, 32, 64, 128), work_ns=4000),
}


@dataclass(frozen=True)
class Figures:
    count: int
    seconds: float
    cpu_seconds: float


def run(*command: str) -> Figures:
    words = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return Figures(int(words[0]), float(words[1]), float(words[2]))


@contextlib.contextmanager
def make_file(folder: str) -> Iterator[str]:
    """A file of random bytes: its blocks must be written, and no host may merge or compress them."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="deep-io-") as file:
        for _ in range(FILE_BYTES // (16 * MIB)):
            file.write(os.urandom(16 * MIB))
        file.flush()
        os.fsync(file.fileno())
        yield file.name


def measure_rates(program: str, path: str, plan: Plan, rounds: int, seconds: float) -> None:
    for block in plan.blocks:
        cells: dict[tuple[int, Way], list[Figures]] = {}
        for _ in range(rounds):
            for depth in plan.depths:
                for way in plan.ways:
                    threads = way.count_threads(depth)
                    if way.threads is not None and threads != way.threads:
                        continue
                    words = (way.call, threads, depth, block, plan.order, seconds, plan.work_ns)
                    cells.setdefault((depth, way), []).append(run(program, "rate", path, *map(str, words)))
        print_rates(cells, block, plan)


def print_rates(cells: dict[tuple[int, Way], list[Figures]], block: int, plan: Plan) -> None:
    scattered = plan.order == "random"
    print(f"\n{block // KIB} KiB {plan.order}, {plan.work_ns} ns of work a read; each cell: ", end="")
    print("1,000 reads/s, CPU s per 100,000 reads" if scattered else "GB/s, CPU s per GB")
    print("| way |" + "".join(f" {depth} |" for depth in plan.depths))
    print("|---|" + "---|" * len(plan.depths))
    for way in plan.ways:
        line = []
        for depth in plan.depths:
            rounds = cells.get((depth, way))
            if rounds is None:
                line.append("")
                continue
            rate = statistics.median(f.count / f.seconds for f in rounds)
            cpu = statistics.median(f.cpu_seconds / f.count for f in rounds)
            if scattered:
                line.append(f"{rate / 1e3:.1f}, {cpu * 1e5:.2f}")
            else:
                line.append(f"{rate * block / 1e9:.2f}, {cpu * 1e9 / block:.3f}")
        print(f"| {way.name} | " + " | ".join(line) + " |", flush=True)


def measure_singles(program: str, path: str, rounds: int) -> None:
    figures: dict[str, list[Figures]] = {what: [] for what in SINGLE_CALLS}
    for _ in range(rounds):
        for what, count in SINGLE_CALLS.items():
            figures[what].append(run(program, "single", path, what, str(count)))
    print("\n| one call | us | CPU us |\n|---|---|---|")
    for what, runs in figures.items():
        wall = statistics.median(f.seconds / f.count for f in runs)
        cpu = statistics.median(f.cpu_seconds / f.count for f in runs)
        print(f"| {what} | {wall * 1e6:.2f} | {cpu * 1e6:.2f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=[*PLANS, "single"], nargs="+")
    parser.add_argument("--dir", help="measure here only")
    parser.add_argument("--disk", default=".", help="folder on the machine's disk (default: the current one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement (default: %(default)s)")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        program = os.path.join(scratch, "deep_io")
        source = str(Path(__file__).with_name("deep_io.c"))
        subprocess.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-pthread", source, "-o", program], check=True)
        if arguments.dir:
            folders = {arguments.dir: arguments.dir}
        else:
            fast = stack.enter_context(open_fast_device(FILE_BYTES + GIB))
            folders = {"the machine's disk": arguments.disk, "the fast device": fast}
        for name, folder in folders.items():
            print(f"\n## {name}", flush=True)
            path = stack.enter_context(make_file(folder))
            for plan in arguments.plan:
                if plan == "single":
                    measure_singles(program, path, arguments.rounds)
                else:
                    measure_rates(program, path, PLANS[plan], arguments.rounds, arguments.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
