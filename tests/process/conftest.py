"""Whole processes under test: each script runs in a Python of its own, since it may hang, crash, fork or exit.

A thread stuck in a fault may hold the GIL, so every process has a watchdog in C: SIGALRM, which prints the stacks and
ends it; children that it forks set their own. (faulthandler's own timer hangs a forked child that exits.) Behind that
stands the timeout of the parent.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHILD_SECONDS = 50

PRELUDE = """
import ctypes, errno, faulthandler, gc, os, random, signal, subprocess, sys, threading, time, traceback, warnings
from pathlib import Path
import numpy as np
import umappy
from umappy.stores import DelayStore, ErrorStore, FileStore

faulthandler.register(signal.SIGALRM, chain=True)
signal.alarm({seconds})
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # Python 3.12: threads are the point here
libc = ctypes.CDLL(None, use_errno=True)
PAGE = 4096


def make_file(pages, fill=0xAB, name="data"):
    "A file of that many pages, each byte `fill`."
    path = Path(name).absolute()
    with path.open("wb") as file:
        for _ in range(pages):
            file.write(bytes([fill]) * PAGE)
    return path


def in_child(work, seconds=20):
    "Runs work() in a forked child; returns its exit code, or minus the signal that ended it."
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(seconds)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return wait(pid)


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read_status(*names):
    "Fields of /proc/self/status, in bytes."
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) << 10 for name in names]


def read_smaps(address, size):
    "Kernel's word on the mappings that lie in [address, address + size): bytes resident, and how many mappings."
    resident = count = 0
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split(None, 1)[0]
            if not first.endswith(":"):
                start, end = (int(part, 16) for part in first.split("-"))
                inside = address <= start and end <= address + size
                count += inside
            elif inside and first == "Rss:":
                resident += int(line.split()[1]) << 10
    return resident, count
"""

RunScript = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_script(tmp_path: Path) -> RunScript:
    """run_script(code, *arguments, cgroup=None, check=True): a Python of its own in an empty folder."""

    def run(
        code: str, *arguments: object, check: bool = True, cgroup: Path | None = None, seconds: int = CHILD_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(PRELUDE.format(seconds=seconds) + textwrap.dedent(code))
        command = [sys.executable, "-W", "error", str(script), *map(str, arguments)]
        if cgroup is not None:
            command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, cwd=tmp_path)
        if check:
            assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    return run


@pytest.fixture
def make_cgroup() -> Iterator[Callable[[int], Path]]:
    """make_cgroup(limit): the folder of a new memory cgroup, version 1 or 2, with that limit in bytes."""
    if os.geteuid() != 0:
        pytest.skip("making a cgroup takes root")
    made: list[Path] = []

    def make(limit: int) -> Path:
        version_1 = Path("/sys/fs/cgroup/memory")
        root, name = (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (version_1.parent, "memory.max")
        try:
            if root != version_1:
                (root / "cgroup.subtree_control").write_text("+memory")
            folder = root / f"umappy-test-{os.getpid()}-{len(made)}"
            folder.mkdir()
            made.append(folder)
            (folder / name).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        return folder

    yield make
    for folder in made:
        folder.rmdir()
