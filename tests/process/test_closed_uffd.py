"""Somebody closes the engine's descriptors: the process ends with one line, and nobody has read a zero."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

SCRIPT = """
import os, random, signal, sys, threading, time
from pathlib import Path
import numpy as np
import umappy

signal.alarm(30)
path, close = sys.argv[1:]
size = os.path.getsize(path)
region = umappy.umap(path, page_size=4096, pager=umappy.Pager("1MiB", fillers=3, evictors=1))
array = np.frombuffer(region, np.uint8)

def read(seed):
    places = random.Random(seed)
    while True:
        found = array[places.randrange(size)]
        if found != 0xAB:
            os.write(1, b"read %d\\n" % found)

def reduce():
    while True:
        if (least := array.min()) != 0xAB:
            os.write(1, b"least %d\\n" % least)

for seed in range(3):
    threading.Thread(target=read, args=(seed,), daemon=True).start()
threading.Thread(target=reduce, daemon=True).start()
time.sleep(0.1 + 0.2 * random.random())

def list_uffds():
    "Not the numbers only: listing them needs one too, which is gone by then."
    links = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return [int(link.name) for link in links if link.is_symlink() and "userfaultfd" in os.readlink(link)]

exec(close)
time.sleep(20)
"""

CLOSES = {
    "closerange": "os.closerange(3, 1000)",
    "only the uffd": "[os.close(fd) for fd in list_uffds()]",
    "replaced by another file": "other = os.open('/dev/null', 0); [os.dup2(other, fd) for fd in list_uffds()]",
    "replaced by another uffd": """
ours, = list_uffds()
other = umappy.Pager("1MiB")
theirs, = set(list_uffds()) - {ours}
os.dup2(theirs, ours)
""",
}


@pytest.mark.parametrize("close", CLOSES.values(), ids=CLOSES)
def test_closed_uffd_ends_the_process_before_anybody_reads_a_zero(tmp_path: Path, close: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"\xab" * (4 << 20))

    def check(_: int) -> None:
        done = subprocess.run([sys.executable, "-c", SCRIPT, path, close], capture_output=True, text=True, timeout=60)
        assert done.stdout == ""
        assert done.returncode == -6, (done.returncode, done.stderr)
        assert done.stderr.count("\n") == 1
        assert "closed the engine's userfaultfd" in done.stderr

    with ThreadPoolExecutor(2) as at_once:
        list(at_once.map(check, range(4)))


def test_closed_uffd_is_noticed_although_nobody_faults(run_script: RunScript) -> None:
    done = run_script(
        """
region = umappy.umap(make_file(4), page_size=4096, pager=umappy.Pager("1MiB"))
region[:]
os.closerange(3, 1000)
time.sleep(10)
print("still there")
""",
        check=False,
    )
    assert (done.returncode, done.stdout) == (-6, "")
    assert "closed the engine's userfaultfd" in done.stderr


def test_write_after_the_uffd_was_closed_is_not_taken_for_written(tmp_path: Path) -> None:
    """A clean page is protected, and without the uffd it would be so no longer: the write would succeed and be lost."""
    path = tmp_path / "data"
    path.write_bytes(b"\xab" * (1 << 20))
    script = """
import os, signal, sys
import numpy as np
import umappy

signal.alarm(30)
region = umappy.umap(sys.argv[1], mode="r+", page_size=4096, pager=umappy.Pager("4MiB"))
array = np.frombuffer(region, np.uint8)
array.max()
os.closerange(3, 1000)
for place in range(0, len(array), 4096):
    array[place] = 1
    os.write(1, b"wrote\\n")
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-6, ""), done.stderr


def test_pagers_made_and_closed_leave_no_descriptor_and_no_thread(run_script: RunScript) -> None:
    """The keeper of each among them."""
    run_script(
        """
with umappy.Pager("1MiB"):
    pass
fds, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
for _ in range(20):
    with umappy.Pager("1MiB"):
        assert len(os.listdir("/proc/self/task")) > threads
assert len(os.listdir("/proc/self/fd")) == fds
deadline = time.monotonic() + 10  # a thread that was joined is still listed for a moment, of the first pager, too
while len(os.listdir("/proc/self/task")) > threads:
    assert time.monotonic() < deadline
    time.sleep(0.001)
"""
    )
