"""Images of Ceph RBD behind qemu-nbd: what every store must do, whatever a region does, and servers that are killed.

What an image holds is read back by `rbd export`, which knows nothing of us.
"""

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from doc_commands import list_blocks, run_blocks
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

import umappy
from nbd_servers import NbdServer, QemuNbd, nbdkit
from tests.region.test_state_machine import NbdMachine
from tests.stores.test_nbd import NbdContract
from umappy.stores import NbdStore, Store

CEPH = Path(os.environ["UMAPPY_CEPH"])
SECTOR = 512  # qemu-nbd serves whole ones
MIB = 1 << 20
EXAMPLES, STEPS = 25, 40

counter = itertools.count()


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def serve_image(name: str, *options: str) -> NbdServer:
    return QemuNbd(["qemu-nbd", "-f", "raw", "--shared=4", *options, f"rbd:rbd/{name}:conf={CEPH / 'ceph.conf'}"])


def create_image(size: int) -> str:
    name = f"image{next(counter)}"
    run("rbd", "create", f"rbd/{name}", "--size", f"{size}B")
    return name


def export_image(name: str, path: Path) -> bytes:
    path.unlink(missing_ok=True)
    run("rbd", "export", f"rbd/{name}", path)
    return path.read_bytes()


class TestContract(NbdContract):
    """Odd sizes are cut by nbdkit in between."""

    def make_server(self, folder: Path, size: int) -> NbdServer:
        image = create_image(-(-size // SECTOR) * SECTOR)
        inner = self.stack.enter_context(serve_image(image))
        return nbdkit("nbd", f"socket={inner.socket}", filters=["offset", f"range={size}"])


class RbdMachine(NbdMachine):
    """Over an image that holds the file."""

    def write_file(self) -> None:
        self.offset, self.size = 0, max(SECTOR, self.size // SECTOR * SECTOR)
        self.oracle = bytearray((self.oracle + bytes(SECTOR))[: self.size])
        self.path.write_bytes(self.oracle)
        self.image = f"image{next(counter)}"
        run("rbd", "import", self.path, f"rbd/{self.image}")
        self.server = serve_image(self.image)
        self.server.__enter__()

    def read_file(self, begin: int, count: int) -> bytes:
        return export_image(self.image, self.folder / "exported")[begin : begin + count]

    def open_store(self, mode: str) -> Store:
        return NbdStore(self.server.uri, mode)


def test_any_sequence_of_calls_equals_a_bytearray(tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: RbdMachine(tmp_path), settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
    )


def test_every_command_and_program_of_the_page_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    page = (Path(__file__).parents[2] / "docs/nbd.md").read_text()
    section = page.partition("## Ceph RBD")[2].partition("## What is promised")[0]
    folder = tmp_path_factory.mktemp("d")
    run_blocks(list_blocks(section), folder)
    assert (folder / "copy").read_bytes() == random.Random(1).randbytes(64 * MIB)


@pytest.fixture
def image() -> str:
    return create_image(64 * MIB)


def test_image_larger_than_memory_holds_what_a_region_flushed(image: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(64 * MIB)
    with serve_image(image) as server, umappy.Pager("8MiB") as pager:
        with umappy.umap(NbdStore(server.uri, "r+"), mode="r+", pager=pager) as region:
            region[:] = data
            region.flush()
            assert export_image(image, tmp_path / "exported") == data
        with umappy.umap(NbdStore(server.uri), pager=pager) as region:
            assert region[:] == data


def kill_server(server: NbdServer) -> None:
    server.kill()
    server.start()


def kill_disk(server: NbdServer) -> None:
    """The cluster makes qemu-nbd wait: it is silent, and maybe given up and connected to again."""
    os.kill(int((CEPH / "osd.0.pid").read_text()), signal.SIGKILL)
    time.sleep(1)
    run("ceph-osd", "-i", "0")


@pytest.mark.parametrize("kill", [kill_server, kill_disk])
def test_kill_while_a_region_writes_loses_nothing(
    image: str, tmp_path: Path, kill: Callable[[NbdServer], None]
) -> None:
    data = random.Random(2).randbytes(64 * MIB)
    with serve_image(image) as server, umappy.Pager("8MiB") as pager:
        store = NbdStore(server.uri, "r+", timeout_seconds=5, retry_seconds=120)
        with umappy.umap(store, mode="r+", pager=pager) as region:
            for offset in range(0, len(data), MIB):
                region[offset : offset + MIB] = data[offset : offset + MIB]
                if offset % (32 * MIB) == 20 * MIB:
                    kill(server)
            region.flush()
            assert export_image(image, tmp_path / "exported") == data
            assert region[:] == data
