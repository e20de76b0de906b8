"""Fault traces: what the engine writes is what is read, and what is no whole trace is refused with words."""

import contextlib
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umappy.trace import MAGIC, Kind, TraceError, TraceRegion, read_trace

ROOT = Path(__file__).parent.parent
HEADER = MAGIC + bytes([1, 0, 1, 0, 0, 0, 0, 0]) + bytes(8)
REGION = bytes([0x80, 0, 0x80, 0x20, 0x80, 0x80, 0x01])  # number 0, pages of 4 KiB, 16 KiB


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace that tests/engine/test_trace.c writes through the engine's trace.c."""
    folder = tmp_path_factory.mktemp("trace")
    engine, tests = ROOT / "umappy/engine", ROOT / "tests/engine"
    sources = [engine / "trace.c", engine / "memory.c", tests / "test_trace.c"]
    program = folder / "write"
    command = ["gcc", "-std=gnu11", "-pthread", f"-I{engine}", f"-I{tests}", *sources, "-o", program]
    subprocess.run(command, check=True, timeout=50)
    subprocess.run([program, folder / "sample"], check=True, timeout=20)
    return folder / "sample"


def test_trace_reads_what_the_engine_wrote(sample: Path) -> None:
    trace = read_trace(sample)
    assert trace.regions == {0: TraceRegion(4096, 1 << 40), 300: TraceRegion(65536, 1 << 20)}
    assert trace.is_complete
    assert trace.lost == 0
    assert trace.faults[["region", "page", "thread", "kind"]].tolist() == [
        (0, 0, 100, Kind.READ),
        (0, 1, 100, Kind.READ),
        (0, 2, 100, Kind.WRITE),
        (300, 15, 4000000, Kind.REFAULT),
        (0, 268435455, 4000000, Kind.PROTECT),
        (0, 7, 100, Kind.READ),
        (300, 0, 100, Kind.READ),
    ]
    times = trace.faults["time_us"].astype(np.int64)
    assert (np.diff(times) >= 0).all()
    assert times[5] - times[4] >= 2000
    assert abs(datetime.now(UTC) - trace.start) < timedelta(minutes=10)
    assert trace.working_set == 5 * 4096 + 2 * 65536


def test_trace_cut_anywhere_is_refused_and_read_in_part(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    whole = read_trace(sample).faults
    for length in range(len(HEADER), len(data)):
        path = tmp_path / "cut"
        path.write_bytes(data[:length])
        with pytest.raises(TraceError, match=r"cut: ends too early, after \d faults"):
            read_trace(path)
        part = read_trace(path, partial=True)
        assert not part.is_complete
        assert part.faults.tolist() == whole[: len(part.faults)].tolist()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no fault trace"),
        (b"\x93NUMPY and more than a header of it", "no fault trace"),
        (HEADER[:20], "ends within its header"),
        (MAGIC + b"\x09" + HEADER[9:], "version 9"),
        (HEADER + b"\x60", "no record 0x60"),
        (HEADER + b"\x99", "no record 0x99"),
        (HEADER + b"\x00\x00\x00", "region 0, which was not announced"),
        (HEADER + b"\x80\x00\x00\x00", "has 0 bytes, in pages of 0"),
        (HEADER + REGION + b"\x00\x08\x00", "page 4 lies outside of region 0"),
        (HEADER + REGION + b"\x00\x01\x00", "page -1 lies outside"),
        (HEADER + REGION + b"\x00" + b"\xff" * 11, "longer than 64 bits"),
        (HEADER + b"\x82\x03\x00", "a count of 3 faults, and there are 0"),
        (HEADER + b"\x82\x00\x00\x00", "something follows its end"),
    ],
)
def test_trace_that_is_none_is_refused_with_words(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=f"garbage: .*{words}"):
        read_trace(path)
    if "no record" in words or "lies outside" in words:
        with pytest.raises(TraceError, match=words):
            read_trace(path, partial=True)


def test_trace_counts_what_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "lossy"
    path.write_bytes(HEADER + REGION + b"\x00\x02\x05\x81\x07\x10\x00\x82\x02\x07")
    trace = read_trace(path)
    assert trace.lost == 7
    assert trace.faults.tolist() == [(5, 1, 0, 0, 0), (5, 2, 0, 0, 0)]


def test_trace_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "missing")


@given(st.binary(max_size=60), st.booleans())
def test_trace_of_any_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, is_begun: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes((HEADER + REGION if is_begun else b"") + data)
    with contextlib.suppress(TraceError):
        trace = read_trace(path, partial=True)
        sizes = np.array([trace.regions[int(region)].size for region in trace.faults["region"]], np.float64)
        assert (trace.faults["page"] < sizes).all()
