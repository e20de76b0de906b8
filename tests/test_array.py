"""`region_of`: which memory is a region's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import umappy
from umappy.array import region_of


@pytest.fixture
def region(tmp_path: Path) -> Iterator[umappy.Region]:
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 16))
    with (
        umappy.Pager(memory="1MiB", fillers=1, evictors=1) as pager,
        umappy.umap(path, mode="r+", pager=pager, page_size=4096) as region,
    ):
        yield region


def test_region_of_an_array_over_the_region_is_found(region: umappy.Region) -> None:
    assert region_of(np.frombuffer(region, np.int64)) == (region, 0)


def test_region_of_views_counts_bytes_from_the_lowest_address(region: umappy.Region) -> None:
    a = np.frombuffer(region, np.int64)
    assert region_of(a[10:20]) == (region, 80)
    assert region_of(a[20:10:-1]) == (region, 88)
    assert region_of(a.reshape(64, -1).T[3:, 2:4]) == (region, 2 * 128 * 8 + 24)
    assert region_of(a.view("S4")[3:]) == (region, 12)


def test_region_of_an_array_over_a_memoryview_is_found(region: umappy.Region) -> None:
    assert region_of(np.asarray(memoryview(region)[16:32])) == (region, 16)


def test_region_of_a_copy_is_none(region: umappy.Region) -> None:
    assert region_of(np.frombuffer(region, np.int64).copy()) is None
    assert region_of(np.frombuffer(b"12345678", np.int64)) is None
