"""What a device gives at best, measured past the page cache by device_limits.c: the denominators of the table."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ContenderError
from harness.sample import Sample

SOURCES = ("device_limits.c", "uring.c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread")


@dataclass(frozen=True)
class DeviceLimits:
    """The program, built."""

    program: str
    seconds: float
    """For each depth that is tried."""

    def measure(self, path: str, memory: int = 0) -> Sample:
        """Returns a sample with the values `sequential` (bytes a second) and `random` (4 KiB reads a second).

        Where `memory` is given `wide`, too: `sequential`, round and round in so many bytes of huge pages.
        `path` is a file on the device, the larger the better. `ways` of each kind, such as "sequential threads 1048576
        8", are values too.
        """
        command = [self.program, path, str(self.seconds), *([str(memory)] if memory else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ContenderError(f"the device's limit could not be measured: {done.stderr.strip()}")
        values = {}
        for line in done.stdout.splitlines():
            label, _, rate = line.rpartition(" ")
            values[label] = float(rate)
            kind, way = label.split()[:2]
            if way.endswith("-best"):
                values[kind] = float(rate)
        return Sample(values=values)


@contextlib.contextmanager
def build_device_limits(seconds: float) -> Iterator[DeviceLimits]:
    """Builds the program in a folder of its own; subprocess.CalledProcessError when that fails."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="umappy-bench-") as folder:
        program = f"{folder}/device_limits"
        subprocess.run(["gcc", *FLAGS, *(str(here / name) for name in SOURCES), "-o", program], check=True)
        yield DeviceLimits(program, seconds)
