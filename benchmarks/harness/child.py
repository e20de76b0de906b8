"""The program a contender runs in: `python -m harness.child MODULE FUNCTION ARGUMENTS`, arguments as a JSON object.

Calls the function with a Meter first; what it does within `with meter:` is measured. It returns a dict of figures.
Prints one line of JSON: fields of a Sample and the peak of its own cgroup.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from types import TracebackType
from typing import Any

from harness.cap import read_own_peak


class Meter:
    """Measures the block it is entered for: time, CPU seconds of all threads, bytes from and to devices."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def __enter__(self) -> None:
        self._before = _count()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        after = _count()
        self.figures = {name: after[name] - self._before[name] for name in after}


def _count() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/io") as file:
        io = dict(line.split(": ") for line in file)
    return {
        "seconds": time.perf_counter(),
        "user_seconds": usage.ru_utime,
        "system_seconds": usage.ru_stime,
        "bytes_read": int(io["read_bytes"]),
        "bytes_written": int(io["write_bytes"]),
    }


def main(module: str, name: str, arguments: str) -> None:
    meter = Meter()
    function: Any = getattr(importlib.import_module(module), name)
    values = function(meter, **json.loads(arguments))
    found = {key: float(value) for key, value in values.items()}
    print(json.dumps(meter.figures | {"values": found, "own_peak": read_own_peak()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
