"""open_store: which store a URL or a path names."""

from pathlib import Path

import numpy as np
import pytest

import umappy
from nbd_servers import nbdkit, needs_nbdkit
from umappy.__main__ import main
from umappy.stores import FileStore, NbdStore, ZstdStore


@pytest.mark.parametrize(("name", "kind"), [("x.bin", FileStore), ("x.zst", ZstdStore), ("nbd", FileStore)])
def test_path_names_a_store_by_its_suffix(tmp_path: Path, name: str, kind: type) -> None:
    with umappy.open_store(tmp_path / name, "x", size=8192) as store:
        assert type(store) is kind
        assert (store.size, store.writable) == (8192, True)


def test_path_is_opened_for_reading_by_default(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"data")
    with umappy.open_store(str(tmp_path / "x")) as store:
        assert not store.writable


def test_options_go_to_the_store(tmp_path: Path) -> None:
    with umappy.open_store(tmp_path / "x.zst", "x", size=65_536, page_size=4096) as store:
        assert store.page_size == 4096


@pytest.mark.parametrize("where", ["s3://bucket/x", "http://host/x", "nbdx://host/"])
def test_unknown_url_raises_and_says_how_to_name_a_file_so(where: str) -> None:
    with pytest.raises(ValueError, match="no store for"):
        umappy.open_store(where)


@pytest.mark.parametrize("where", [b"x", 3, None])
def test_what_is_no_name_raises(where: object) -> None:
    with pytest.raises(TypeError, match="wants"):
        umappy.open_store(where)


def test_size_of_an_export_raises() -> None:
    with pytest.raises(ValueError, match="server gives"):
        umappy.open_store("nbd://127.0.0.1:1/", size="1MiB")


@needs_nbdkit
def test_url_names_an_export() -> None:
    with nbdkit("memory", "size=1M", tcp=True) as server, umappy.open_store(server.uri, "r+", connections=2) as store:
        assert isinstance(store, NbdStore)
        assert (store.mode, store.info().connections) == ("r+", 2)


@needs_nbdkit
def test_umap_of_a_url_reads_and_writes_the_export() -> None:
    with nbdkit("memory", "size=1M") as server:
        with umappy.umap(server.uri, mode="r+") as region:
            region[5000:5004] = b"here"
        with umappy.umap(server.uri) as region:
            assert region[4999:5005] == b"\0here\0"
            assert region.mode == "r"


@needs_nbdkit
def test_load_of_a_url_gives_the_array_in_the_export(tmp_path: Path) -> None:
    array = np.arange(100_000).reshape(100, 1000)
    np.save(tmp_path / "x.npy", array)
    with nbdkit("file", str(tmp_path / "x.npy")) as server:
        assert (umappy.load(server.uri) == array).all()


@needs_nbdkit
@pytest.mark.parametrize("in_place", [True, False])
def test_sort_command_takes_an_export(tmp_path: Path, in_place: bool) -> None:
    values = np.random.default_rng(1).integers(0, 1 << 62, 50_000)
    values.tofile(tmp_path / "x")
    result = tmp_path / ("x" if in_place else "sorted")
    with nbdkit("file", str(tmp_path / "x")) as server:
        where = ["--in-place"] if in_place else [str(result)]
        assert main(["sort", server.uri, *where, "--memory", "16MiB", "--quiet"]) == 0
    assert (np.fromfile(result, np.int64) == np.sort(values)).all()
