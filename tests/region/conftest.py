"""Regions over files of random bytes, in pagers with one filler and the smallest budget that the engine takes.

Everything is closed at a test's end; a view that a test leaves behind makes that fail.
"""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import umappy
from umappy._engine import lib
from umappy.stores.testing import make_bytes

CHILD_SECONDS = 30

PRELUDE = """
import faulthandler, os, sys, threading, time
from pathlib import Path
import numpy as np
import umappy
from umappy.stores import DelayStore, ErrorStore, FileStore

# In C: a thread stuck in a fault may hold the GIL.
faulthandler.dump_traceback_later({seconds}, exit=True)
"""


@pytest.fixture
def make_pager() -> Iterator[Callable[..., umappy.Pager]]:
    """make_pager(page_size, **options): by default one filler, one evictor, and the smallest budget for such pages."""
    with ExitStack() as stack:

        def make(page_size: int = 4096, *, memory: int | None = None, **options: Any) -> umappy.Pager:
            options = {"fillers": 1, "evictors": 1, "timeout_seconds": 5.0} | options
            least = lib.um_pager_memory_min(page_size, options["fillers"], options["evictors"])
            return stack.enter_context(umappy.Pager(memory or least, **options))

        yield make


@pytest.fixture
def map_store(make_pager: Callable[..., umappy.Pager]) -> Iterator[Callable[..., umappy.Region]]:
    """map_store(store, size, page_size=4096, pager=..., **options): by default in a pager of its own, the smallest."""
    with ExitStack() as stack:

        def map_store(store: Any, size: Any = None, *, page_size: int = 4096, **options: Any) -> umappy.Region:
            options.setdefault("pager", None)
            pager = options.pop("pager") or make_pager(page_size)
            region = umappy.umap(store, size, page_size=page_size, pager=pager, **options)
            stack.callback(region.close)
            return region

        yield map_store


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """make_file(size, seed): a new file of random bytes, `make_bytes(seed, size)`."""

    def make(size: int, seed: int = 1) -> Path:
        path = tmp_path / f"file-{len(list(tmp_path.glob('file-*')))}"
        path.write_bytes(make_bytes(seed, size))
        return path

    return make


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_python(code, *arguments): a Python of its own, for what may hang or end the process."""

    def run(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(PRELUDE.format(seconds=CHILD_SECONDS) + textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS + 30,
            cwd=tmp_path,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
