"""One writer a file: across processes, within one, after fork and after a killed writer."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from umappy import errors
from umappy.stores import DelayStore, FileStore
from umappy.stores.testing import read

HOLD = """
import sys
from umappy.stores import FileStore
store = FileStore(sys.argv[1], "r+")
print("open", flush=True)
sys.stdin.read()
store.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    return path


@contextmanager
def other_writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the file open for writing until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


@contextmanager
def forked_child() -> Iterator[int]:
    """A forked child that lives as long as the block and does nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        yield child
    finally:
        os.close(writer)
        os.waitpid(child, 0)


@pytest.mark.parametrize("mode", ["r+", "w+"])
def test_second_writer_in_this_process_is_refused(path: Path, mode: str) -> None:
    with FileStore(path, "r+"), pytest.raises(errors.StoreLockedError, match=str(path)):
        FileStore(path, mode, size=10)


def test_second_writer_in_write_mode_leaves_the_bytes(path: Path) -> None:
    with FileStore(path, "r+") as store:
        with pytest.raises(errors.StoreLockedError):
            FileStore(path, "w+", size=3)
        assert read(store) == b"0123456789"


def test_second_writer_in_another_process_is_refused(path: Path) -> None:
    with other_writer(path), pytest.raises(errors.StoreLockedError, match="lock=False"):
        FileStore(path, "r+")


def test_writer_after_another_process_closed_is_let_in(path: Path) -> None:
    with other_writer(path) as process:
        process.communicate("", timeout=30)
        FileStore(path, "r+").close()


def test_writer_after_another_process_was_killed_is_let_in(path: Path) -> None:
    with other_writer(path) as process:
        process.kill()
        process.wait(30)
        FileStore(path, "r+").close()


def test_reader_beside_a_writer_is_let_in_and_stops_nobody(path: Path) -> None:
    with FileStore(path) as reader, FileStore(path, "r+"), FileStore(path) as late:
        assert read(reader) == read(late) == b"0123456789"


def test_writer_without_lock_is_let_in(path: Path) -> None:
    with FileStore(path, "r+"), FileStore(path, "r+", lock=False) as second:
        second.write(0, b"x")


def test_writer_through_another_name_of_the_file_is_refused(path: Path) -> None:
    other = path.with_name("y")
    other.hardlink_to(path)
    with FileStore(path, "r+"), pytest.raises(errors.StoreLockedError, match=str(other)):
        FileStore(other, "r+")


def test_reader_opened_and_closed_beside_a_writer_leaves_its_lock(path: Path) -> None:
    """With POSIX locks, closing any descriptor of the file would give it up."""
    with FileStore(path, "r+"):
        FileStore(path).close()
        with pytest.raises(errors.StoreLockedError):
            FileStore(path, "r+")


def test_writer_after_close_is_let_in(path: Path) -> None:
    FileStore(path, "r+").close()
    FileStore(path, "r+").close()


def test_writer_is_refused_where_one_part_is_locked_and_then_holds_no_other(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    FileStore([(part, 10) for part in paths], "x").close()
    with FileStore(paths[1], "r+"):
        with pytest.raises(errors.StoreLockedError, match=str(paths[1])):
            FileStore(paths, "r+")
        FileStore(paths[0], "r+").close()


def test_write_mode_that_is_refused_leaves_the_file_another_made(path: Path) -> None:
    path.unlink()
    with FileStore(path, "x", size=4):
        with pytest.raises(errors.StoreLockedError):
            FileStore(path, "w+", size=4)
        assert path.exists()


def test_close_with_a_forked_child_alive_lets_a_writer_in(path: Path) -> None:
    store = FileStore(path, "r+")
    with forked_child():
        store.close()
        FileStore(path, "r+").close()


def test_lock_after_a_forked_child_ended_still_holds(path: Path) -> None:
    with FileStore(path, "r+"):
        with forked_child():
            pass
        with pytest.raises(errors.StoreLockedError):
            FileStore(path, "r+")


def test_lock_of_a_killed_writer_with_a_forked_child_alive_is_gone(path: Path) -> None:
    """The child closed its copies of the descriptors at once; else the lock would live as long as the child."""
    told, tell = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.setpgid(0, 0)
        store = FileStore(path, "r+")
        if os.fork() == 0:
            os.write(tell, b"%d\n" % os.getpid())
            signal.pause()
        signal.pause()
        store.close()
        os._exit(0)
    os.close(tell)
    with os.fdopen(told) as lines:
        child = int(lines.readline())
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    try:
        assert Path(f"/proc/{child}").exists()
        FileStore(path, "r+").close()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("wrapped", [False, True])
def test_store_in_a_forked_child_raises_and_closes_without_taking_the_lock(path: Path, wrapped: bool) -> None:
    store: FileStore | DelayStore = FileStore(path, "r+")
    if wrapped:
        store = DelayStore(store, 0.0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.read_into(0, bytearray(1))
        except errors.ForkedRegionError:
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(errors.StoreLockedError):
        FileStore(path, "r+")
    assert read(store) == b"0123456789"
    store.close()


def test_forked_child_has_no_descriptor_of_the_file(path: Path) -> None:
    with FileStore(path, "r+") as store, forked_child() as child:
        assert list_descriptors(os.getpid(), path)
        deadline = 200
        while list_descriptors(child, path) and deadline:
            deadline -= 1
        assert not list_descriptors(child, path)
        assert read(store) == b"0123456789"


def test_started_program_has_no_descriptor_of_the_file(path: Path) -> None:
    with FileStore(path, "r+"), subprocess.Popen(["sleep", "60"], close_fds=False) as program:
        try:
            assert not list_descriptors(program.pid, path)
        finally:
            program.kill()


def list_descriptors(process: int, path: Path) -> list[Path]:
    return [link for link in Path(f"/proc/{process}/fd").iterdir() if read_link(link) == str(path)]


def read_link(link: Path) -> str | None:
    """None: it was closed meanwhile."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return None
