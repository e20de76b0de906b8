"""Files of earlier versions of umappy are read and written for ever; tests/helpers/golden_files.py made them."""

from pathlib import Path

import pytest

from golden_files import GOLDEN, VERSION, make_page, unpack_golden
from umappy.stores import ZstdStore
from umappy.stores.testing import read
from zst_files import run_tool

FILES = [(version, name) for version in range(1, VERSION + 1) for name in GOLDEN]


@pytest.fixture(params=FILES, ids=lambda file: f"{file[1]}-{file[0]}")
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    version, name = request.param
    path = tmp_path / "x.zst"
    unpack_golden(version, name, path)
    return name, path


def test_golden_file_reads_as_its_image(golden: tuple[str, Path]) -> None:
    name, path = golden
    before = path.read_bytes()
    with ZstdStore(path) as store:
        assert read(store, 0, store.size) == GOLDEN[name].image()
        assert store.verify() == []
        assert store.info().format_version in range(1, VERSION + 1)
    assert path.read_bytes() == before


def test_golden_file_opened_for_writing_is_whole_and_takes_more(golden: tuple[str, Path]) -> None:
    name, path = golden
    wanted = bytearray(GOLDEN[name].image())
    with ZstdStore(path, "r+") as store:
        assert read(store, 0, store.size) == wanted
        store.verify_frames()
        for page in (0, 2):
            wanted[page * 4096 : (page + 1) * 4096] = make_page(page, 99)
            store.write(page * 4096, make_page(page, 99))
        store.flush()
        assert read(store, 0, store.size) == wanted
    with ZstdStore(path) as store:
        assert read(store, 0, store.size) == wanted
        assert store.verify() == []
        store.verify_frames()


def test_golden_file_is_a_zstd_file(golden: tuple[str, Path]) -> None:
    run_tool("zstd", "-q", "-t", golden[1])
