"""NbdStore: the contract and what servers offer, refuse and demand, over nbdkit and qemu-nbd."""

import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import umappy
from nbd_servers import NbdServer, make_qcow2, nbdkit, needs_nbdkit, needs_qemu_nbd, qemu_nbd
from umappy.errors import ForkedRegionError, StoreError, StoreNotFoundError, StorePermissionError
from umappy.stores import NbdStore, Store
from umappy.stores.testing import StoreContract, make_bytes, read, write

MIB = 1 << 20
ODD_SIZE = 5 * MIB + 12_345


@pytest.fixture
def serve() -> Iterator[object]:
    """serve(server): the same, started; ended with the test."""
    with ExitStack() as stack:
        yield stack.enter_context


class NbdContract(StoreContract):
    """A server each test."""

    options: ClassVar[dict[str, object]] = {}
    stack: ExitStack
    server: NbdServer

    @pytest.fixture(autouse=True)
    def servers(self) -> Iterator[None]:
        with ExitStack() as self.stack:
            yield

    def make_server(self, folder: Path, size: int) -> NbdServer:
        raise NotImplementedError

    def create(self, folder: Path, size: int) -> Store:
        self.server = self.stack.enter_context(self.make_server(folder, size))
        return NbdStore(self.server.uri, "r+", **self.options)

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return NbdStore(self.server.uri, "r+" if writable else "r", **self.options)


@needs_nbdkit
class TestMemory(NbdContract):
    def make_server(self, folder: Path, size: int) -> NbdServer:
        return nbdkit("memory", f"size={size}")


@needs_nbdkit
class TestOneConnection(TestMemory):
    options: ClassVar[dict[str, object]] = {"connections": 1}


@needs_nbdkit
class TestTcp(NbdContract):
    def make_server(self, folder: Path, size: int) -> NbdServer:
        return nbdkit("memory", f"size={size}", tcp=True, export="an export/with spaces")


@needs_nbdkit
class TestFile(NbdContract):
    def make_server(self, folder: Path, size: int) -> NbdServer:
        (folder / "x").touch()
        os.truncate(folder / "x", size)
        return nbdkit("file", str(folder / "x"))


@needs_nbdkit
class TestSimpleReplies(NbdContract):
    def make_server(self, folder: Path, size: int) -> NbdServer:
        return nbdkit("memory", f"size={size}", options=["--no-sr"])


@needs_nbdkit
class TestBlocks(NbdContract):
    """Blocks of two bytes, which divide the contract's size; the server refuses all else."""

    def make_server(self, folder: Path, size: int) -> NbdServer:
        limits = ["blocksize-minimum=2", "blocksize-preferred=512", "blocksize-maximum=4096"]
        return nbdkit("memory", f"size={size}", filters=["blocksize-policy", "blocksize-error-policy=error", *limits])


@needs_nbdkit
class TestBareServer(NbdContract):
    """Neither FLUSH, nor zeroes, nor several connections, one request at a time."""

    def make_server(self, folder: Path, size: int) -> NbdServer:
        filters = ["nozero", "noparallel", "fua", "multi-conn", "multi-conn-mode=disable"]
        return nbdkit("memory", f"size={size}", filters=filters)


def make_image(folder: Path, image_format: str, size: int) -> Path:
    path = folder / f"x.{image_format}"
    if image_format == "qcow2":
        return make_qcow2(path, size)
    path.touch()
    os.truncate(path, size)
    return path


@needs_qemu_nbd
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("shared", [1, 4])
def test_qemu_gives_back_what_was_written(serve, tmp_path: Path, image_format: str, shared: int) -> None:
    image = make_image(tmp_path, image_format, 4 * MIB)
    server = serve(qemu_nbd(image, image_format=image_format, options=[f"--shared={shared}"]))
    oracle = bytearray(4 * MIB)
    with NbdStore(server.uri, "r+") as store:
        assert store.info().connections == (4 if shared == 4 and store.info().can_multi_conn else 1)
        for offset, length in [(0, 4096), (65_536, 65_536), (1_000_001, 700_000), (4 * MIB - 1, 1)]:
            data = make_bytes(offset, length)
            store.write(offset, data)
            oracle[offset : offset + length] = data
        assert read(store) == oracle
        store.flush()
    with NbdStore(server.uri) as store:
        assert read(store) == oracle


@needs_nbdkit
@pytest.mark.parametrize("options", [(), ("--no-sr",)])
def test_sparse_bytes_are_those_that_nbdcopy_reads(serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    if shutil.which("nbdcopy") is None:
        pytest.skip("needs nbdcopy (apt-get install libnbd-bin)")
    server = serve(nbdkit("sparse-random", "size=64M", "seed=7", "percent=40", options=options))
    subprocess.run(["nbdcopy", server.uri, tmp_path / "copy"], check=True, timeout=60)
    with NbdStore(server.uri) as store:
        assert read(store) == (tmp_path / "copy").read_bytes()


@needs_qemu_nbd
def test_holes_and_data_of_one_read_are_put_together(serve, tmp_path: Path) -> None:
    """qemu-nbd answers one read of a sparse image with many chunks."""
    image = make_qcow2(tmp_path / "x.qcow2", 8 * MIB)
    server = serve(qemu_nbd(image, image_format="qcow2"))
    oracle = bytearray(8 * MIB)
    with NbdStore(server.uri, "r+") as store:
        for offset in range(0, 8 * MIB, 3 * 65_536):
            store.write(offset, data := make_bytes(offset, 65_536))
            oracle[offset : offset + 65_536] = data
        assert store.info().structured
        assert read(store) == oracle
        for offset in range(0, 7 * MIB, 100_000):  # one at a time, each of several chunks
            assert read(store, offset, 300_000) == oracle[offset : offset + 300_000]


@needs_nbdkit
@pytest.mark.parametrize("filters", [["noparallel"], ["rate", "rate=400M"], ["delay", "delay-read=1ms"]], ids=str)
def test_slow_servers_give_the_pattern(serve, filters: list[str]) -> None:
    server = serve(nbdkit("pattern", "size=4M", filters=filters))
    with NbdStore(server.uri) as store:
        assert read(store) == np.arange(0, 4 * MIB, 8, dtype=">u8").tobytes()


@needs_nbdkit
def test_requests_keep_to_the_servers_maximum(serve) -> None:
    limits = ["blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536"]
    server = serve(nbdkit("memory", "size=8M", filters=["blocksize-policy", "blocksize-error-policy=error", *limits]))
    with NbdStore(server.uri, "r+") as store:
        assert (store.info().block_min, store.info().request_max) == (512, 65_536)
        data = make_bytes(1, 3 * MIB + 100)
        store.write(77, data)
        assert read(store, 77, len(data)) == data


@needs_nbdkit
def test_writes_of_parts_of_a_block_beside_each_other_all_arrive(serve) -> None:
    limits = ["blocksize-minimum=64K", "blocksize-preferred=64K", "blocksize-maximum=1M"]
    server = serve(nbdkit("memory", "size=1M", filters=["blocksize-policy", "blocksize-error-policy=error", *limits]))
    from concurrent.futures import ThreadPoolExecutor

    with NbdStore(server.uri, "r+") as store, ThreadPoolExecutor(8) as pool:
        assert store.page_size == 65_536
        list(pool.map(lambda i: store.write(i * 1000, bytes([i + 1]) * 1000), range(64)))
        assert read(store, 0, 64_000) == b"".join(bytes([i + 1]) * 1000 for i in range(64))


@needs_nbdkit
def test_size_that_is_no_multiple_of_the_block_is_refused(serve) -> None:
    limits = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=1M"]
    server = serve(nbdkit("memory", f"size={ODD_SIZE}", filters=["blocksize-policy", *limits]))
    with pytest.raises(ValueError, match=f"{ODD_SIZE} bytes.*blocks of 4096.*multiple"):
        NbdStore(server.uri)


@needs_nbdkit
def test_odd_size_is_mapped_to_its_last_byte(serve) -> None:
    server = serve(nbdkit("pattern", f"size={ODD_SIZE}"))
    with umappy.Pager("16MiB") as pager, umappy.umap(NbdStore(server.uri), pager=pager) as region:
        expected = np.arange(0, ODD_SIZE + 8, 8, dtype=">u8").tobytes()[:ODD_SIZE]
        assert region[:] == expected


def read_log(server: NbdServer) -> str:
    return (server.folder / "calls").read_text()


def serve_logged(serve, *arguments: str, filters: tuple[str, ...] = ()) -> NbdServer:
    server = nbdkit(*arguments)
    server.command[1:1] = ["--filter=log", *(f"--filter={name}" for name in filters)]
    server.command += [f"logfile={server.folder / 'calls'}"]
    return serve(server)


@needs_nbdkit
def test_zero_pages_are_written_without_sending_them(serve) -> None:
    server = serve_logged(serve, "memory", "size=1M")
    with NbdStore(server.uri, "r+") as store:
        write(store, 0, make_bytes(1, 65_536))
        write(store, 0, bytes(65_536))
        assert read(store, 0, 65_536) == bytes(65_536)
    assert read_log(server).count(" Write ") == 1
    assert read_log(server).count(" Zero ") == 1


@needs_nbdkit
def test_write_zeroes_of_any_stretch_leaves_the_bytes_around_it_alone(serve) -> None:
    server = serve(nbdkit("memory", "size=1M"))
    before = make_bytes(1, MIB)
    with NbdStore(server.uri, "r+") as store:
        store.write(0, before)
        store.write_zeroes(5000, 300_001)
        assert read(store) == before[:5000] + bytes(300_001) + before[305_001:]


@needs_nbdkit
def test_write_zeroes_where_the_server_cannot_sends_zeros(serve) -> None:
    server = serve_logged(serve, "memory", "size=1M", filters=("nozero",))
    with NbdStore(server.uri, "r+") as store:
        assert not store.info().can_write_zeroes
        store.write(0, b"x" * 1000)
        store.write_zeroes(10, 100)
        assert read(store, 0, 1000) == b"x" * 10 + bytes(100) + b"x" * 890


@needs_nbdkit
def test_discard_reaches_the_server_in_whole_blocks(serve) -> None:
    server = serve_logged(serve, "memory", "size=1M", filters=())
    with NbdStore(server.uri, "r+") as store:
        store.write(0, b"x" * MIB)
        store.discard(0, 65_536)
        store.flush()
        assert read(store, 65_536) == b"x" * (MIB - 65_536)
    assert "Trim" in read_log(server)


@needs_nbdkit
@pytest.mark.parametrize("call", ["discard", "write_zeroes"])
def test_calls_past_the_end_raise(serve, call: str) -> None:
    server = serve(nbdkit("memory", "size=1M"))
    with NbdStore(server.uri, "r+") as store, pytest.raises(ValueError, match="pass the store's size"):
        getattr(store, call)(MIB - 10, 11)


@needs_nbdkit
@pytest.mark.parametrize("call", ["discard", "write_zeroes"])
def test_changing_a_read_only_store_raises(serve, call: str) -> None:
    server = serve(nbdkit("memory", "size=1M"))
    with NbdStore(server.uri) as store, pytest.raises(StoreError, match="reading only"):
        getattr(store, call)(0, 4096)


@needs_nbdkit
def test_flush_goes_out_when_there_is_something_to_flush(serve) -> None:
    server = serve_logged(serve, "memory", "size=1M")
    with NbdStore(server.uri, "r+") as store:
        store.write(0, b"x")
        assert store.info().unflushed > 0
        store.flush()
        assert store.info().unflushed == 0
    assert read_log(server).count(" Flush ") == 1


@needs_nbdkit
def test_writes_past_the_journal_are_flushed_and_all_arrive(serve) -> None:
    """The journal of a store without a region is 8 MiB."""
    server = serve_logged(serve, "memory", "size=64M")
    data = make_bytes(3, 40 * MIB)
    with NbdStore(server.uri, "r+") as store:
        store.write(0, data)
        assert store.info().unflushed <= 8 * MIB
        assert read(store, 0, len(data)) == data
    assert read_log(server).count(" Flush ") >= 4


@needs_nbdkit
def test_read_only_export_opened_for_writing_is_refused(serve) -> None:
    server = serve(nbdkit("memory", "size=1M", options=["-r"]))
    with pytest.raises(StorePermissionError, match="read-only"):
        NbdStore(server.uri, "r+")
    with NbdStore(server.uri) as store:
        assert store.info().read_only


@needs_nbdkit
def test_several_connections_to_write_where_the_server_has_one_are_refused(serve) -> None:
    server = serve(nbdkit("memory", "size=1M", filters=["multi-conn", "multi-conn-mode=disable"]))
    with pytest.raises(ValueError, match="connections is 2"):
        NbdStore(server.uri, "r+", connections=2)
    with NbdStore(server.uri, connections=2) as store:
        assert store.info().connections_up == 2


@needs_nbdkit
@pytest.mark.parametrize(("disabled", "count"), [(False, 4), (True, 1)])
def test_auto_opens_several_connections_where_the_server_allows_them(serve, disabled: bool, count: int) -> None:
    filters = ["multi-conn", "multi-conn-mode=disable"] if disabled else []
    server = serve(nbdkit("memory", "size=1M", filters=filters))
    with NbdStore(server.uri, "r+") as store:
        assert (store.info().connections, store.info().can_multi_conn) == (count, not disabled)


@needs_qemu_nbd
def test_unknown_export_is_not_found(serve, tmp_path: Path) -> None:
    server = serve(qemu_nbd(make_image(tmp_path, "raw", MIB), export="there"))
    with pytest.raises(StoreNotFoundError, match="no export of that name"):
        NbdStore(server.uri.replace("/there", "/elsewhere"))


def test_missing_socket_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="nothing"):
        NbdStore(f"nbd+unix:///?socket={tmp_path}/nothing")


@pytest.mark.parametrize("mode", ["w+", "x", "write"])
def test_modes_that_create_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="made by its server"):
        NbdStore("nbd://127.0.0.1:1/", mode)


@pytest.mark.parametrize("connections", [0, 17, -1])
def test_count_of_connections_out_of_range_is_refused(connections: int) -> None:
    with pytest.raises(ValueError, match=f"connections is {connections}"):
        NbdStore("nbd://127.0.0.1:1/", connections=connections)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("name", ["timeout_seconds", "retry_seconds"])
def test_seconds_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        NbdStore("nbd://127.0.0.1:1/", **{name: value})


@needs_nbdkit
def test_pickle_opens_the_same_export_for_reading(serve) -> None:
    server = serve(nbdkit("memory", "size=1M"))
    with NbdStore(server.uri, "r+") as store:
        store.write(0, b"here")
        store.flush()
        with pickle.loads(pickle.dumps(store)) as again:
            assert (again.mode, read(again, 0, 4)) == ("r", b"here")


@needs_nbdkit
def test_forked_child_is_refused_and_leaves_the_connection_alone(serve) -> None:
    server = serve(nbdkit("memory", "size=1M"))
    with NbdStore(server.uri, "r+") as store:
        store.write(0, b"parent")
        child = os.fork()
        if child == 0:
            try:
                store.read_into(0, bytearray(4))
            except ForkedRegionError:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert read(store, 0, 6) == b"parent"


@needs_nbdkit
def test_take_of_scattered_items_is_right(serve) -> None:
    server = serve(nbdkit("pattern", "size=64M"))
    chance = np.random.default_rng(5)
    with umappy.Pager("16MiB") as pager, umappy.umap(NbdStore(server.uri), pager=pager) as region:
        array = np.frombuffer(region, ">u8")
        indices = chance.integers(0, len(array), 20_000)
        assert (umappy.take(array, indices) == indices * 8).all()
        del array


@needs_nbdkit
def test_region_larger_than_its_budget_is_written_and_read(serve, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    os.truncate(path, 64 * MIB)
    server = serve(nbdkit("file", str(path)))
    with umappy.Pager("8MiB", fillers=4) as pager:
        with umappy.umap(NbdStore(server.uri, "r+"), pager=pager) as region:
            array = np.frombuffer(region, np.int64)
            array[:] = np.arange(len(array))
            assert array.sum() == len(array) * (len(array) - 1) // 2
            del array
            region.flush()
            assert (np.fromfile(path, np.int64) == np.arange(8 * MIB)).all()
        assert pager.stats().peak_used <= 8 * MIB
