"""The targets of umappy's speed, each against its peer: `make bench-targets`, or

    .venv/bin/python benchmarks/targets.py --rows sequential,take --rounds 3 --size 4GiB
    .venv/bin/python benchmarks/targets.py --quick               # small files, one round: does it all work?

Every contender runs in a process of its own, in a fresh memory cgroup of --limit bytes, after the page cache was
dropped; contenders take turns, every result is checked, and the median of the ratios counts. Two devices: "fast", ext4
on a loop device with direct I/O over tmpfs, which repeats well, and "disk", the machine's own, in a folder (--dir,
$UMAPPY_BENCH_DIR, else this project's) that is emptied in the end. Their own limits are measured in the same rounds.
Prints a table and writes every sample to --json. Needs root and gcc. On a machine that does other things meanwhile the
figures are worth little: the load is printed with each.

"-" as a verdict: no target, for comparison only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.awake import keep_awake
from harness.bench import OTHER_BYTES, Bench
from harness.device_limits import build_device_limits
from harness.errors import ContenderError
from harness.fast_device import open_fast_device
from harness.place import Place
from harness.report import print_report, write_json
from harness.result import Result
from umappy.cli.cgroup import CgroupError
from umappy.sizes import format_size, parse_size

# The sort goes first: it needs the space that the others' file takes later.
SUBJECTS = {
    "sort": "rows.sort",
    "sequential": "rows.sequential",
    "random": "rows.random_reads",
    "take": "rows.take",
    "update": "rows.update",
    "writes": "rows.writes",
    "loop": "rows.loop",
    "zipf": "rows.zipf",
    "fault": "rows.fault_latency",
    "resident": "rows.resident_reads",
}
DEVICES = ("fast", "disk")
QUICK = {"size": "1GiB", "limit": "256MiB", "rounds": 1, "reads": 5_000, "limit_seconds": 0.1}
FULL = {"size": "4GiB", "limit": "512MiB", "rounds": 3, "reads": 20_000, "limit_seconds": 0.4}


def main() -> int:
    arguments = parse_arguments()
    title = f"{arguments.size} file, cgroup of {arguments.limit}, rounds: {arguments.rounds}"
    with keep_awake() if arguments.awake else contextlib.nullcontext():
        return run("targets", arguments, SUBJECTS, title)


def run(
    program: str, arguments: argparse.Namespace, subjects: Mapping[str, str], title: str, room: int | None = None
) -> int:
    """Measures the rows asked for, reports, and returns the exit status. `room`: see `prepare`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the devices are to be taken away then too
    results: list[Result] = []
    devices = {}
    try:
        with contextlib.ExitStack() as stack:
            bench = prepare(arguments, stack, room)
            devices = {place.name: place.describe() for place in bench.places}
            for subject in arguments.rows:
                print(subject, file=sys.stderr, flush=True)
                results += importlib.import_module(subjects[subject]).measure(bench)
    except KeyboardInterrupt:
        return 130
    except (OSError, subprocess.CalledProcessError, CgroupError, ContenderError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    finally:
        if results:
            print_report(title, results)
            write_json(arguments.json, vars(arguments), devices, results)
    return int(any(result.verdict == "problem" for result in results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, SUBJECTS, "bench-targets.json")
    parser.add_argument("--awake", action="store_true", help="keep the cores from halting (see harness/awake.py)")
    return choose(parser, SUBJECTS, QUICK, FULL)


def add_arguments(parser: argparse.ArgumentParser, subjects: Iterable[str], report: str) -> None:
    """What every such program takes; `choose` fills in what is not given."""
    parser.add_argument("--rows", default=",".join(subjects), help="subjects (default: all: %(default)s)")
    parser.add_argument("--devices", default=",".join(DEVICES), help="where to measure (default: %(default)s)")
    parser.add_argument("--size", help="of the file; some rows take a part of it")
    parser.add_argument("--limit", help="of the cgroup")
    parser.add_argument("--memory", help="umappy's budget (default: the limit less 128 MiB)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--reads", type=int, help="random reads or writes of a run; some rows take a part of them")
    parser.add_argument("--limit-seconds", type=float, help="for each depth of a device's own limit")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter: no figures, only whether all works")
    parser.add_argument("--dir", help="folder on the machine's disk")
    parser.add_argument("--json", default=report, help="file for every sample (default: %(default)s)")


def choose(
    parser: argparse.ArgumentParser, subjects: Iterable[str], quick: Mapping[str, Any], full: Mapping[str, Any]
) -> argparse.Namespace:
    """Parses; what is not given is as in `full`, or `quick`."""
    arguments = parser.parse_args()
    for name, value in (quick if arguments.quick else full).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    for name, known in (("rows", tuple(subjects)), ("devices", DEVICES)):
        asked = getattr(arguments, name).split(",")
        if unknown := set(asked) - set(known):
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        setattr(arguments, name, [item for item in known if item in asked])
    return arguments


def prepare(arguments: argparse.Namespace, stack: contextlib.ExitStack, room: int | None = None) -> Bench:
    """The devices, and all that a row asks for. `room`: bytes of files on each, if not those of one file."""
    size = parse_size(arguments.size, "--size") // 4096 * 4096
    limit = parse_size(arguments.limit, "--limit")
    memory = parse_size(arguments.memory, "--memory") if arguments.memory else limit - OTHER_BYTES
    if memory <= 0:
        raise ContenderError(
            f"--limit {format_size(limit)} leaves no budget: it takes {format_size(OTHER_BYTES)} and more"
        )
    limits = stack.enter_context(build_device_limits(arguments.limit_seconds))
    places = []
    for device in arguments.devices:
        if device == "fast":  # the file, or what is sorted and its scratch; and what ext4 needs itself
            files = size if room is None else room
            folder = stack.enter_context(open_fast_device(files + files // 8 + (128 << 20)))
        else:
            parent = arguments.dir or os.environ.get("UMAPPY_BENCH_DIR") or Path(__file__).parents[1]
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".bench-", dir=parent))
        places.append(Place(device, folder))
    return Bench(size, limit, memory, arguments.rounds, arguments.reads, tuple(places), limits)


if __name__ == "__main__":
    sys.exit(main())
