"""The end of the process: what was written is in the file, whichever way it ends, and nothing hangs.

Races are looked for by doing each several times, two processes at once, and by a stress test that goes on for long.
"""

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

PAGE = 4096
PAGES = 96
ROUNDS = 2
WATCHDOG_SECONDS = 40

PRELUDE = """
import faulthandler, gc, os, signal, sys, threading, time
import numpy as np
import umappy
from umappy.stores import DelayStore, ErrorStore, FileStore

faulthandler.register(signal.SIGALRM, chain=True)
signal.alarm({seconds})
path = sys.argv[1]

def map_array(wrap=lambda store: store):
    # A third of the region fits, so pages come and go all the time.
    pager = umappy.Pager("600KiB", fillers=2, evictors=1)
    region = umappy.umap(wrap(FileStore(path, "r+")), page_size=4096, pager=pager)
    return np.frombuffer(region, np.int64)
"""


def run(tmp_path: Path, code: str, name: str = "data") -> tuple[subprocess.CompletedProcess[str], Path, float]:
    """Runs it over a file of zeros; returns how it ended, the file, and the seconds it took."""
    path = tmp_path / name
    path.write_bytes(bytes(PAGES * PAGE))
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE.format(seconds=WATCHDOG_SECONDS) + textwrap.dedent(code), path],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_SECONDS + 20,
    )
    return done, path, time.monotonic() - start


ENDINGS = {
    "normal": "array = map_array(); array[:] = 7",
    "sys.exit": "array = map_array(); array[:] = 7; sys.exit(3)",
    "unhandled exception": "array = map_array(); array[:] = 7; raise ValueError('unhandled')",
    "exception with the array in its frames": """
        def work():
            array = map_array()
            array[:] = 7
            raise ValueError("unhandled")
        work()
        """,
    "KeyboardInterrupt": "array = map_array(); array[:] = 7; signal.raise_signal(signal.SIGINT)",
    "del": "array = map_array(); array[:] = 7; del array",
    "a region in a cycle": """
        class Node: pass
        node = Node()
        node.me, node.array = node, map_array()
        node.array[:] = 7
        del node
        """,
    "an array in a cycle with a finalizer": """
        class Node:
            def __del__(self):
                self.array[0] = 7  # still there, still written
        node = Node()
        node.me, node.array = node, map_array()
        node.array[1:] = 7
        del node
        """,
    "written by atexit": """
        import atexit
        array = map_array()
        atexit.register(array.fill, 7)
        """,
    "kept by a module": "import json; json.array = map_array(); json.array[:] = 7",
    "kept by a builtin": "import builtins; builtins.array = map_array(); builtins.array[:] = 7",
    "kept by C": """
        import ctypes
        array = map_array()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(array))
        array[:] = 7
        """,
    "two regions, one pager": """
        array = map_array()
        half = len(array) // 2
        with open(path + "-b", "wb") as file:
            file.truncate(os.path.getsize(path))
        other = np.frombuffer(umappy.umap(path + "-b", mode="r+", page_size=4096, pager=array.base.obj.pager), np.int64)
        array[:] = 7
        other[:] = 7
        """,
    "a thread ends after the main one": """
        array = map_array()
        def work():
            time.sleep(0.1)
            array[:] = 7
        threading.Thread(target=work).start()
        """,
    "a daemon thread waits": """
        array = map_array()
        array[:] = 7
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        """,
    "a daemon thread flushes": """
        array = map_array()
        def work():
            while True:
                array.base.obj.flush()
        threading.Thread(target=work, daemon=True).start()
        array[:] = 7
        """,
    "a daemon thread reads": """
        array = map_array()
        array[:] = 7
        def work():
            while True:
                array.sum()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05)
        """,
    "a daemon thread opens and closes": """
        array = map_array()
        array[:] = 7
        def work():
            while True:
                umappy.umap(path, page_size=4096, pager=array.base.obj.pager).close()
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05)
        """,
    "a region open in a with block": """
        region = map_array().base.obj
        def work():
            with region:
                np.frombuffer(region, np.int64)[:] = 7
                sys.exit(3)
        work()
        """,
}
STATUSES = {"sys.exit": 3, "a region open in a with block": 3, "KeyboardInterrupt": -signal.SIGINT}


@pytest.mark.parametrize("name", ENDINGS)
def test_exit_leaves_every_write_in_the_file(tmp_path: Path, name: str) -> None:
    with ThreadPoolExecutor(2) as at_once:
        list(at_once.map(lambda round_: check_ending(tmp_path, name, f"data-{round_}"), range(ROUNDS)))


@pytest.mark.stress
def test_exit_again_and_again_leaves_every_write_in_the_file(tmp_path: Path, stress_seconds: float) -> None:
    end = time.monotonic() + stress_seconds

    def check(thread: int) -> None:
        for name in itertools.cycle(random.Random(thread).sample(list(ENDINGS), len(ENDINGS))):
            if time.monotonic() >= end:
                return
            check_ending(tmp_path, name, f"data-{thread}")

    with ThreadPoolExecutor(3) as at_once:
        list(at_once.map(check, range(3)))


def check_ending(tmp_path: Path, name: str, file_name: str) -> None:
    done, path, _ = run(tmp_path, ENDINGS[name], file_name)
    expected = STATUSES.get(name, 1 if "exception" in name else 0)
    assert done.returncode == expected, f"{name}: {done.returncode}: {done.stderr}"
    if expected == 1:
        assert "ValueError: unhandled" in done.stderr
    elif expected >= 0:
        assert not done.stderr
    assert (np.fromfile(path, np.int64) == 7).all(), name


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_exit_of_a_multiprocessing_child_leaves_every_write_in_the_file(tmp_path: Path, method: str) -> None:
    """The first two end by os._exit."""
    (tmp_path / "work.py").write_text(
        textwrap.dedent("""
        import numpy as np
        import umappy

        def work(path):
            global array
            array = np.frombuffer(umappy.umap(path, mode="r+", pager=umappy.Pager("4MiB")), np.int64)
            array[:] = 7
        """)
    )
    code = f"""
        import multiprocessing, warnings
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        sys.path.insert(0, {str(tmp_path)!r})
        import work
        process = multiprocessing.get_context({method!r}).Process(target=work.work, args=(path,))
        process.start()
        process.join()
        sys.exit(process.exitcode)
        """
    done, path, _ = run(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert (np.fromfile(path, np.int64) == 7).all()


def test_exit_with_daemon_threads_writing_keeps_what_they_had_finished(tmp_path: Path) -> None:
    """Each thread fills its part with 1, 2, 3, ... without the GIL, and says so after each."""
    code = """
        array = map_array()
        def write(part):
            n = 0
            while True:
                n += 1
                array[part::3] = n
                os.write(1, b"%d %d\\n" % (part, n))
        for part in range(3):
            threading.Thread(target=write, args=(part,), daemon=True).start()
        time.sleep(0.3)
        sys.exit(3)
        """

    def check(round_: int) -> None:
        done, path, _ = run(tmp_path, code, f"data-{round_}")
        assert (done.returncode, done.stderr) == (3, "")
        found = np.fromfile(path, np.int64)
        last = {int(part): int(n) for part, n in (line.split() for line in done.stdout.splitlines())}
        assert len(last) == 3
        for part, n in last.items():
            assert found[part::3].min() >= n
            assert found[part::3].max() <= n + 1

    with ThreadPoolExecutor(2) as at_once:
        list(at_once.map(check, range(4 * ROUNDS)))


def test_exit_amid_evictions_of_a_large_region_leaves_every_write_in_the_file(tmp_path: Path) -> None:
    """More is dirty, and being written back, than at any other ending here."""
    code = """
        with open(path, "r+b") as file:
            file.truncate(64 << 20)
        region = umappy.umap(path, mode="r+", page_size=4096, pager=umappy.Pager("32MiB"))
        array = np.frombuffer(region, np.int64)
        array[:] = np.arange(len(array))
        """
    done, path, _ = run(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert (np.fromfile(path, np.int64) == np.arange((64 << 20) // 8)).all()


@pytest.mark.parametrize("op", ["write", "flush"])
@pytest.mark.parametrize("owner", ["array = ", "import builtins; builtins.array = array = "], ids=["script", "forever"])
def test_exit_with_a_hung_store_ends_in_time_and_says_what_is_lost(tmp_path: Path, op: str, owner: str) -> None:
    code = f"""
        umappy.config.exit_timeout_seconds = 0.5
        {owner}map_array(lambda store: DelayStore(store, 3600, op={op!r}))
        array[:10] = 7
        """
    done, _, seconds = run(tmp_path, code)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("umappy: at exit: dirty pages are lost")
    assert "did not take them in time" in done.stderr
    assert seconds < 10


@pytest.mark.parametrize("owner", ["array = ", "import builtins; builtins.array = array = "], ids=["script", "forever"])
@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
def test_exit_with_a_failing_store_says_what_is_lost(tmp_path: Path, owner: str, number: str) -> None:
    code = f"""
        import errno
        {owner}map_array(lambda store: ErrorStore(store, op="write", errno=errno.{number}))
        array[:10] = 7
        """
    done, path, seconds = run(tmp_path, code)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("umappy: at exit: dirty pages are lost: ")
    assert "offset 0" in done.stderr
    assert os.strerror(getattr(errno, number)) in done.stderr
    assert seconds < 20
    assert path.read_bytes() == bytes(PAGES * PAGE)


def test_exit_with_a_region_that_was_garbage_while_its_store_failed_tries_once_more(tmp_path: Path) -> None:
    code = """
        import errno
        store = None
        def wrap(inner):
            global store
            store = ErrorStore(inner, op="write", errno=errno.ENOSPC)
            return store
        array = map_array(wrap)
        array[:10] = 7
        del array
        gc.collect()
        store.clear()
        """
    done, path, _ = run(tmp_path, code)
    assert done.returncode == 0
    assert "keeps dirty pages until exit" in done.stderr
    assert np.fromfile(path, np.int64)[:10].tolist() == [7] * 10


def test_exit_with_a_region_that_was_garbage_and_whose_store_still_fails_says_what_is_lost(tmp_path: Path) -> None:
    code = """
        import errno
        array = map_array(lambda store: ErrorStore(store, op="write", errno=errno.ENOSPC))
        array[:10] = 7
        del array
        gc.collect()
        """
    done, _, _ = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert "umappy: at exit: dirty pages are lost: " in done.stderr


def test_exit_of_one_failing_store_among_several_leaves_the_others_in_their_files(tmp_path: Path) -> None:
    code = """
        import errno
        array = map_array(lambda store: ErrorStore(store, op="write", errno=errno.ENOSPC))
        good = []
        for i in range(3):
            with open(f"{path}-{i}", "wb") as file:
                file.truncate(8 * 4096)
            good.append(np.frombuffer(umappy.umap(f"{path}-{i}", mode="r+", pager=array.base.obj.pager), np.uint8))
            good[-1][:] = 7
        array[:10] = 7
        """
    done, path, _ = run(tmp_path, code)
    assert done.stderr.count("\n") == 1, done.stderr
    for i in range(3):
        assert Path(f"{path}-{i}").read_bytes() == b"\x07" * (8 * PAGE)


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_end_without_exit_loses_what_was_not_flushed_and_keeps_what_was(tmp_path: Path, end: str) -> None:
    code = f"""
        array = map_array()
        array[0] = 7
        array.base.obj.flush()
        array[1] = 7
        {end}
        """
    _, path, _ = run(tmp_path, code)
    assert np.fromfile(path, np.int64)[:2].tolist() == [7, 0]
