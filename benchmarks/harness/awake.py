"""Cores that never halt.

Waking a halted core takes a few microseconds of bare metal and tens of a virtual machine, which then hide what a fault
costs. A thread that spins on each core, in a scheduling class that gives way to everything, keeps them awake.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Ends by itself should nobody be left to end it.
SPIN = """
import os
parent = os.getppid()
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def keep_awake() -> Iterator[None]:
    """While the block runs no core is idle."""
    with contextlib.ExitStack() as stack:
        for _ in range(len(os.sched_getaffinity(0))):
            spinner = stack.enter_context(subprocess.Popen([sys.executable, "-S", "-c", SPIN]))
            stack.callback(spinner.kill)
        yield
