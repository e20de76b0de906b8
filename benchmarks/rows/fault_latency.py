"""From fault to data: the engine against a bare uffd loop, by the engine's own test, built with optimization.

Every fault wakes a thread. Where that thread has another core, the wake-up is most of what there is, the more so in a
virtual machine; where it has the same core, what is left is what the two do. Cores are kept from halting meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.awake import keep_awake
from harness.bench import Bench
from harness.errors import ContenderError
from harness.figures import value
from harness.result import Result, Side, Target, compare
from harness.rounds import alternate
from harness.sample import Sample

ENGINE_TESTS = Path(__file__).parents[2] / "tests" / "engine"
FLAGS = "-std=gnu11 -O2 -pthread"
LINE = re.compile(r"bare uffd loop (?P<bare>[0-9.]+) us, engine (?P<engine>[0-9.]+) us")
PERCENTILES = re.compile(r"bare uffd loop, us:(?P<pairs>( p[0-9.]+ [0-9.]+)+)")


def run(program: str, *cores: int) -> Sample:
    """Runs the test with the thread that faults and those that serve it on these two cores; none given: on any.

    Values in microseconds: `bare` and `engine`, the medians; of the bare loop `p1` to `p100`, too.
    """
    with keep_awake():
        done = subprocess.run([program, *map(str, cores)], capture_output=True, text=True)
    found, pairs = LINE.search(done.stdout), PERCENTILES.search(done.stdout)
    if done.returncode or not found or not pairs:
        raise ContenderError(f"{program} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    words = pairs["pairs"].split()
    figures = found.groupdict() | dict(zip(words[::2], words[1::2], strict=True))
    return Sample(values={name: float(text) for name, text in figures.items()})


@contextlib.contextmanager
def build_program() -> Iterator[str]:
    """Builds the test, and takes it away again."""
    with tempfile.TemporaryDirectory(prefix="umappy-bench-") as folder:
        program = f"{folder}/build/test_fault_latency"
        jobs = f"-j{len(os.sched_getaffinity(0))}"
        command = ["make", jobs, "-C", str(ENGINE_TESTS), f"BUILD={folder}/build", f"CFLAGS={FLAGS}", program]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise ContenderError(f"cannot build {program}: {built.stderr.strip()[-500:]}")
        yield program


def measure(bench: Bench) -> list[Result]:
    cores = sorted(os.sched_getaffinity(0))
    with build_program() as program:
        contenders = {"one core": functools.partial(run, program, cores[0], cores[0])}
        if len(cores) > 1:
            contenders["two cores"] = functools.partial(run, program, cores[0], cores[1])
        rounds = alternate(contenders, max(bench.rounds, 3))

    def side(contender: str, name: str) -> Side:
        return Side(contender, value(name), lambda each: f"{each:.1f} us")

    return [
        compare(
            f"4 KiB fault to data, p50, {contender}",
            "memory",
            rounds,
            side(contender, "bare"),
            side(contender, "engine"),
            lambda bare, engine: engine / bare,
            Target("at most", 1.5),
            against="bare uffd loop",
        )
        for contender in contenders
    ]
