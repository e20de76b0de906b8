"""From fault to data: the engine against a bare uffd loop, by the engine's own test, built with optimization.

Every fault wakes a thread; where cores halt meanwhile that wake-up is nearly all there is. So the cores are kept awake
for the target, and a second row tells what it is where they halt.
"""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import tempfile
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


def run(program: str, awake: bool) -> Sample:
    with keep_awake() if awake else contextlib.nullcontext():
        done = subprocess.run([program], capture_output=True, text=True)
    found = LINE.search(done.stdout)
    if done.returncode or not found:
        raise ContenderError(f"{program} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return Sample(values={name: float(text) for name, text in found.groupdict().items()})


def measure(bench: Bench) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="umappy-bench-") as folder:
        program = f"{folder}/build/test_fault_latency"
        command = ["make", "-C", str(ENGINE_TESTS), f"BUILD={folder}/build", f"CFLAGS={FLAGS}", program]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise ContenderError(f"cannot build {program}: {built.stderr.strip()[-500:]}")
        contenders = {
            "awake": functools.partial(run, program, awake=True),
            "halting": functools.partial(run, program, awake=False),
        }
        rounds = alternate(contenders, max(bench.rounds, 3))

    def side(contender: str, name: str) -> Side:
        return Side(contender, value(name), lambda each: f"{each:.1f} us")

    return [
        compare(
            work,
            "memory",
            rounds,
            side(contender, "bare"),
            side(contender, "engine"),
            lambda bare, engine: engine / bare,
            target,
            against="bare uffd loop",
        )
        for contender, work, target in (
            ("awake", "4 KiB fault to data, p50", Target("at most", 1.5)),
            ("halting", "the same, cores halting between", None),
        )
    ]
