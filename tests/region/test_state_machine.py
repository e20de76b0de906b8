"""Whatever a program does with a region in whatever order, it finds the bytes that a bytearray would hold."""

import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import umappy
from nbd_servers import nbdkit, needs_nbdkit
from umappy._engine import lib
from umappy.stores import FileStore, NbdStore, Store, ZstdStore

EXAMPLES = 150
STEPS = 40
# File offset, page size, pages, bytes of the last page beyond the last whole one.
SHAPES = st.tuples(
    st.sampled_from([0, 0, 4096, 128, 1]),
    st.sampled_from([4096, 4096, 16384, 65536]),
    st.integers(0, 60),
    st.sampled_from([0, 1, 511, 512, 4095]),
).filter(lambda shape: shape[2] or shape[3])
# The smallest budget, or a little more, or all that the region needs.
BUDGETS = st.sampled_from([0, 1, 20, 100])
# Where something begins and how long it is, in parts of the region: near both ends and tiny as well.
PARTS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))


def make_pattern(seed: int, length: int) -> bytes:
    """Bytes that differ from their neighbours, one page from the next, and one seed from another."""
    places = np.arange(length, dtype=np.uint64)
    return ((places * 7 + (places >> np.uint64(12)) * 13 + seed * 31) & np.uint64(0xFF)).astype(np.uint8).tobytes()


class RegionMachine(RuleBasedStateMachine):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.path = self.folder / "x"

    @initialize(
        shape=SHAPES,
        spare=BUDGETS,
        fillers=st.sampled_from([1, 1, 3]),
        direct=st.sampled_from([True, False]),
    )
    def create(self, shape: tuple[int, int, int, int], spare: int, fillers: int, direct: bool) -> None:
        self.offset, self.page_size, pages, tail = shape
        self.size = pages * self.page_size + tail
        self.direct = direct and self.offset % 4096 == 0
        self.oracle = bytearray(make_pattern(0, self.size))
        self.write_file()
        least = lib.um_pager_memory_min(self.page_size, fillers, 1)
        self.pager = umappy.Pager(least + spare * self.page_size, fillers=fillers, evictors=1)
        self.open("r+")

    def write_file(self) -> None:
        self.before = os.urandom(self.offset)
        self.path.write_bytes(self.before + self.oracle)

    def open_store(self, mode: str) -> Store:
        store = FileStore(self.path, mode, offset=self.offset, direct=self.direct)
        assert store.direct == self.direct
        return store

    def read_file(self, begin: int, count: int) -> bytes:
        content = self.path.read_bytes()
        assert content.startswith(self.before)
        return content[self.offset :][begin : begin + count]

    def open(self, mode: str) -> None:
        self.region = umappy.umap(self.open_store(mode), page_size=self.page_size, pager=self.pager)

    def teardown(self) -> None:
        if hasattr(self, "region"):
            self.region.close()
            self.compare_file()
            self.pager.close()
        shutil.rmtree(self.folder)

    def compare_file(self) -> None:
        assert self.read_file(0, self.size + 1) == self.oracle

    def choose(self, start: float, length: float, near: bool) -> tuple[int, int]:
        """A range of the region; `near`: of a few bytes, so that pages' ends lie in the middle of many."""
        begin = int(start * self.size)
        if near:
            begin = max(0, min(self.size, round(begin / self.page_size) * self.page_size - int(length * 10)))
            return begin, min(self.size - begin, int(length * 20))
        return begin, int(length * (self.size - begin))

    @property
    def is_writable(self) -> bool:
        return self.region.mode == "r+"

    @rule(start=PARTS, length=PARTS, near=st.booleans())
    def read(self, start: float, length: float, near: bool) -> None:
        begin, count = self.choose(start, length, near)
        assert self.region[begin : begin + count] == self.oracle[begin : begin + count]

    @rule(start=PARTS, step=st.integers(1, 9000))
    def read_with_step(self, start: float, step: int) -> None:
        begin = int(start * self.size)
        array = np.frombuffer(self.region, np.uint8)
        assert (array[begin::step] == np.frombuffer(self.oracle, np.uint8)[begin::step]).all()

    @precondition(lambda self: self.is_writable)
    @rule(start=PARTS, length=PARTS, near=st.booleans(), seed=st.integers(0, 255))
    def write(self, start: float, length: float, near: bool, seed: int) -> None:
        begin, count = self.choose(start, length, near)
        self.region[begin : begin + count] = self.oracle[begin : begin + count] = make_pattern(seed, count)

    @precondition(lambda self: self.is_writable)
    @rule(start=PARTS, step=st.integers(1, 9000), seed=st.integers(0, 255))
    def write_with_step(self, start: float, step: int, seed: int) -> None:
        begin = int(start * self.size)
        for memory in (self.region, self.oracle):
            np.frombuffer(memory, np.uint8)[begin::step] = seed

    @precondition(lambda self: self.is_writable)
    @rule(start=PARTS, length=PARTS, near=st.booleans(), seed=st.integers(0, 255))
    def overwrite(self, start: float, length: float, near: bool, seed: int) -> None:
        begin, count = self.choose(start, length, near)
        data = make_pattern(seed, count)
        self.region.overwrite(begin, data)
        self.oracle[begin : begin + count] = data

    @precondition(lambda self: self.is_writable)
    @rule(start=PARTS, to=PARTS, length=PARTS)
    def move(self, start: float, to: float, length: float) -> None:
        begin, end = int(start * self.size), int(to * self.size)
        count = int(length * (self.size - max(begin, end)))
        self.region.move(end, begin, count)
        self.oracle[end : end + count] = self.oracle[begin : begin + count]

    @precondition(lambda self: self.is_writable)
    @rule(rounds=st.integers(1, 3))
    def write_in_threads(self, rounds: int) -> None:
        """Every third byte each: all of them in every page."""

        def add(array: np.ndarray) -> None:
            for _ in range(rounds):
                np.add(array, 1, out=array)

        array = np.frombuffer(self.region, np.uint8)
        threads = [threading.Thread(target=add, args=(array[first::3],)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.frombuffer(self.oracle, np.uint8)[:] += np.uint8(rounds)

    @precondition(lambda self: self.is_writable and self.pager.stats().uffd != lib.UM_UFFD_USER_MODE_ONLY)
    @rule(start=PARTS, length=PARTS, seed=st.integers(0, 255))
    def kernel_write(self, start: float, length: float, seed: int) -> None:
        begin, count = self.choose(start, length, near=False)
        self.oracle[begin : begin + count] = data = make_pattern(seed, count)
        file = os.memfd_create("source")
        try:
            os.write(file, data)
            with memoryview(self.region) as view, view[begin : begin + count] as part:
                assert os.preadv(file, [part], 0) == count
        finally:
            os.close(file)

    @rule()
    def flush(self) -> None:
        self.region.flush()
        if self.is_writable:
            assert self.region.stats().dirty == 0
        self.compare_file()

    @rule(start=PARTS, length=PARTS, near=st.booleans())
    def flush_range(self, start: float, length: float, near: bool) -> None:
        begin, count = self.choose(start, length, near)
        self.region.flush(begin, count)
        assert self.read_file(begin, count) == self.oracle[begin : begin + count]

    @rule(start=PARTS, length=PARTS, near=st.booleans())
    def evict(self, start: float, length: float, near: bool) -> None:
        begin, count = self.choose(start, length, near)
        self.region.evict(slice(begin, begin + count))
        # What was asked for or guessed before may still come, but comes to an end.
        deadline = time.monotonic() + 20
        while self.region.residency(begin, count).any():
            assert time.monotonic() < deadline
            self.region.evict(slice(begin, begin + count))

    @rule(start=PARTS, length=PARTS, wait=st.booleans())
    def prefetch(self, start: float, length: float, wait: bool) -> None:
        begin, count = self.choose(start, length, near=False)
        self.region.prefetch(slice(begin, begin + count), wait=wait)

    @rule(mode=st.sampled_from(["r", "r+", "r+"]))
    def reopen(self, mode: str) -> None:
        self.region.close()
        self.compare_file()
        self.open(mode)

    @rule()
    def close_with_a_view(self) -> None:
        with memoryview(self.region), pytest.raises(BufferError):
            self.region.close()

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "region"):
            assert len(self.region) == self.size
            assert self.region.errors == ()
            stats = self.pager.stats()
            assert stats.resident <= stats.memory


class ZstdMachine(RegionMachine):
    """Over a compressed file, whose pages are those of the region or smaller; the file's offset means nothing."""

    def write_file(self) -> None:
        pages = random.Random(self.size).choice([self.page_size, 4096])
        with ZstdStore(self.path, "x", size=self.size, page_size=pages, level=-1) as store:
            store.write(0, self.oracle)
            store.flush()

    def open_store(self, mode: str) -> Store:
        return ZstdStore(self.path, mode, level=-1)

    def read_file(self, begin: int, count: int) -> bytes:
        with ZstdStore(self.path) as store:
            assert store.size == self.size
            buffer = bytearray(min(count, self.size - begin))
            store.read_into(begin, buffer)
        return bytes(buffer)


class NbdMachine(RegionMachine):
    """Over an NBD server of the file."""

    def write_file(self) -> None:
        super().write_file()
        self.server = nbdkit("file", str(self.path), filters=["offset", f"offset={self.offset}"])
        self.server.__enter__()

    def open_store(self, mode: str) -> Store:
        return NbdStore(self.server.uri, mode, connections=1 if self.direct else 3)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "server"):
                self.server.__exit__(None, None, None)


@pytest.mark.parametrize("machine", [RegionMachine, ZstdMachine, pytest.param(NbdMachine, marks=needs_nbdkit)])
def test_any_sequence_of_calls_equals_a_bytearray(direct_folder: Path, machine: type[RegionMachine]) -> None:
    run_state_machine_as_test(
        lambda: machine(direct_folder),
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS),
    )
