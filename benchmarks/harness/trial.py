"""Runs a contender: in a process of its own, under a memory limit of its own, after the page cache was dropped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cap import Cap, forget_files, open_cap
from harness.errors import ContenderError
from harness.place import Place
from harness.sample import Sample

BENCHMARKS = str(Path(__file__).parent.parent)
TIMEOUT_SECONDS = 900.0
# Loop devices write to the memory behind a fast device, which must not count as the contender's.
SHARED_MEMORY_MAX = 1 << 20


@dataclass(frozen=True)
class Trial:
    """A function of a module in rows/, to be called in a child with `arguments`, under a limit of `limit` bytes.

    ContenderError when it fails, or when what it returns differs from `expected`.
    """

    function: Callable[..., dict[str, float]]
    arguments: dict[str, Any]
    limit: int
    place: Place | None = None
    expected: dict[str, float] | None = None
    timeout_seconds: float = TIMEOUT_SECONDS

    def run(self) -> Sample:
        forget_files(self.place and self.place.folder)
        before = self.place and self.place.count_bytes()
        with open_cap(self.limit) as cap:
            figures = self._run_child(cap)
            own_peak = figures.pop("own_peak")
            peak, shared = cap.read_peak(), cap.read_shared_memory()
        os.sync()
        after = self.place and self.place.count_bytes()
        if shared > SHARED_MEMORY_MAX:
            raise ContenderError(
                f"{shared} bytes of shared memory were charged to it: the fast device is not set up well"
            )
        moved = (after[0] - before[0], after[1] - before[1]) if before and after else (None, None)
        sample = Sample(
            **figures,
            device_bytes_read=moved[0],
            device_bytes_written=moved[1],
            cgroup_peak_bytes=own_peak if cap.kind == "systemd" else peak,
            cap=cap.kind,
        )
        for name, value in (self.expected or {}).items():
            if sample.values[name] != value:
                raise ContenderError(f"wrong result: {name} is {sample.values[name]!r}, not {value!r}")
        return sample

    def _run_child(self, cap: Cap) -> dict[str, Any]:
        names = (self.function.__module__, self.function.__name__)
        # -P: the umappy that is installed, not the one in the folder we happen to be in.
        command = cap.wrap([sys.executable, "-P", "-m", "harness.child", *names, json.dumps(self.arguments)])
        environment = os.environ | {"PYTHONPATH": BENCHMARKS}
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to handle
        ) as child:
            try:
                out, errors = child.communicate(timeout=self.timeout_seconds)
            except subprocess.TimeoutExpired:
                raise ContenderError(f"stopped after {self.timeout_seconds:.0f} s") from None
            finally:
                child.kill()
        if child.returncode == -signal.SIGKILL:
            raise ContenderError("killed: out of memory")
        if child.returncode:
            raise ContenderError(f"failed ({child.returncode}): {errors.strip()[-2000:] or 'it said nothing'}")
        figures: dict[str, Any] = json.loads(out.splitlines()[-1])
        return figures
