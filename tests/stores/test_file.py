"""FileStore: the contract in every shape, opening, sizes, parts, pickling. Its other sides have files of their own."""

import errno
import itertools
import os
import pickle
import resource
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from umappy import errors
from umappy._engine import ffi, lib
from umappy.stores import DelayStore, FileStore, Store
from umappy.stores.testing import SIZE, StoreContract, make_bytes, read, write


class TestBuffered(StoreContract):
    options: ClassVar[dict[str, object]] = {"direct": False}

    def create(self, folder: Path, size: int) -> Store:
        return FileStore(folder / "x", "w+", size=size, **self.options)

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return FileStore(folder / "x", "r+" if writable else "r", **self.options)


class TestDirect(TestBuffered):
    options: ClassVar[dict[str, object]] = {"direct": True}

    @pytest.fixture
    def tmp_path(self, direct_folder: Path) -> Path:
        return direct_folder


class TestAuto(TestBuffered):
    options: ClassVar[dict[str, object]] = {"direct": "auto"}


class TestAlignedOffset(TestBuffered):
    options: ClassVar[dict[str, object]] = {"offset": 8192}


class TestUnalignedOffset(TestBuffered):
    options: ClassVar[dict[str, object]] = {"offset": 128}


class TestParts(StoreContract):
    """Parts whose ends lie on blocks, so that all of them can be direct."""

    cuts = (4096, 5 * 4096)

    def create(self, folder: Path, size: int) -> Store:
        bounds = [0, *self.cuts, size]
        parts = [(folder / f"{i}", end - begin) for i, (begin, end) in enumerate(itertools.pairwise(bounds))]
        return FileStore(parts, "w+")

    def reopen(self, folder: Path, *, writable: bool) -> Store:
        return FileStore([folder / f"{i}" for i in range(len(self.cuts) + 1)], "r+" if writable else "r")


class TestUnalignedParts(TestParts):
    cuts = (1, 700, 4096 + 9, 20001)


class TestManyParts(TestParts):
    cuts = tuple(range(1000, 33000, 1000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x"


def test_open_for_reading_gives_the_files_bytes(path: Path) -> None:
    data = make_bytes(1, 10000)
    path.write_bytes(data)
    with FileStore(path) as store:
        assert (store.size, store.mode, store.writable, read(store)) == (10000, "r", False, data)


@pytest.mark.parametrize(
    ("long", "short"), [("readonly", "r"), ("readwrite", "r+"), ("write", "w+")], ids=lambda name: name
)
def test_open_with_numpys_long_mode_means_the_short_one(path: Path, long: str, short: str) -> None:
    path.write_bytes(b"abc")
    with FileStore(path, long, size=3) as store:
        assert store.mode == short


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_open_takes_any_kind_of_path(path: Path, kind: type) -> None:
    path.write_bytes(b"abc")
    with FileStore(kind(path)) as store:
        assert (store.path, store.paths) == (str(path), (str(path),))


def test_path_of_a_relative_path_is_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"abc")
    monkeypatch.chdir(path.parent)
    with FileStore("x") as store:
        monkeypatch.chdir("/")
        assert store.path == str(path)
        with pickle.loads(pickle.dumps(store)) as again:
            assert read(again) == b"abc"


def test_open_with_offset_and_size_gives_that_stretch(path: Path) -> None:
    path.write_bytes(b"0123456789")
    with FileStore(path, offset=3, size=4) as store:
        assert read(store) == b"3456"


def test_open_with_sizes_as_text_parses_them(path: Path) -> None:
    with FileStore(path, "w+", offset="4KiB", size="1MiB") as store:
        assert (store.offset, store.size, path.stat().st_size) == (4096, 1 << 20, (1 << 20) + 4096)


@pytest.mark.parametrize("direct", [True, False, "auto"])
def test_file_with_a_partial_block_is_never_padded(direct_folder: Path, direct: bool | str) -> None:
    path = direct_folder / "x"
    for size in (1, 511, 512, 4095, 4096, 4097, 8191, 3 * 4096 + 513):
        with FileStore(path, "w+", size=size, direct=direct) as store:
            data = make_bytes(size, size)
            write(store, 0, data)
            store.flush()
        assert path.read_bytes() == data


def test_create_makes_a_hole(path: Path) -> None:
    with FileStore(path, "w+", size="1TiB") as store:
        assert store.size == 1 << 40
        store.write((1 << 40) - 5, b"end")
        assert read(store, (1 << 40) - 6, 6) == b"\0end\0\0"
    assert path.stat().st_blocks * 512 < 1 << 20


def test_write_mode_empties_what_was_there(path: Path) -> None:
    path.write_bytes(b"old" * 5000)
    with FileStore(path, "w+", size=6) as store:
        assert read(store) == bytes(6)
    assert path.stat().st_size == 6


def test_write_mode_keeps_the_inode(path: Path) -> None:
    path.write_bytes(b"old")
    inode = path.stat().st_ino
    FileStore(path, "w+", size=6).close()
    assert path.stat().st_ino == inode


def test_create_honours_the_umask(path: Path) -> None:
    before = os.umask(0o027)
    try:
        FileStore(path, "x", size=1).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_create_through_a_dangling_link_makes_its_target(path: Path) -> None:
    target = path.with_name("target")
    path.symlink_to(target)
    FileStore(path, "w+", size=7).close()
    assert target.stat().st_size == 7
    assert path.is_symlink()


def test_exclusive_mode_with_a_file_raises_and_leaves_it(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(errors.StoreExistsError, match=str(path)):
        FileStore(path, "x", size=6)
    assert path.read_bytes() == b"old"


def test_update_mode_with_a_larger_size_extends(path: Path) -> None:
    path.write_bytes(b"old")
    with FileStore(path, "r+", size=6) as store:
        assert read(store) == b"old\0\0\0"
    assert path.stat().st_size == 6


def test_update_mode_with_a_smaller_size_keeps_the_rest(path: Path) -> None:
    path.write_bytes(b"0123456789")
    with FileStore(path, "r+", size=4) as store:
        store.write(0, b"abcd")
    assert path.read_bytes() == b"abcd456789"


def test_read_mode_with_a_larger_size_raises_naming_the_remedy(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"has 3 bytes.* 6 asked for.*'r\+'"):
        FileStore(path, size=6)


def test_open_with_offset_past_the_end_raises(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"offset 4 .*3"):
        FileStore(path, offset=4)


def test_open_of_an_empty_file_gives_an_empty_store(path: Path) -> None:
    path.write_bytes(b"")
    with FileStore(path) as store:
        assert (store.size, read(store)) == (0, b"")


@pytest.mark.parametrize("mode", ["w+", "x"])
def test_create_without_size_raises_and_leaves_no_file(path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match=f"{path}: a new file needs a size"):
        FileStore(path, mode)
    assert not path.exists()


def test_write_mode_without_size_leaves_the_old_bytes(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="needs a size"):
        FileStore(path, "w+")
    assert path.read_bytes() == b"old"


def test_size_that_no_file_can_have_raises_and_leaves_no_file(path: Path) -> None:
    with pytest.raises((ValueError, errors.StoreError), match=str(path)):
        FileStore(path, "w+", size=(1 << 63) - 1)
    assert not path.exists()


def test_size_that_the_limit_forbids_restores_the_file(path: Path) -> None:
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(errors.StoreError) as caught:
            FileStore(path, "r+", size=2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"


def test_open_of_a_missing_file_raises_not_found(path: Path) -> None:
    for mode in ("r", "r+"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            FileStore(path, mode)


def test_create_in_a_missing_folder_raises_not_found(path: Path) -> None:
    with pytest.raises(errors.StoreNotFoundError, match=str(path)):
        FileStore(path / "y", "w+", size=1)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_open_of_a_folder_raises(tmp_path: Path, mode: str) -> None:
    with pytest.raises(errors.StoreError, match="is a folder") as caught:
        FileStore(tmp_path, mode)
    assert caught.value.errno == errno.EISDIR


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_open_of_a_pipe_raises_without_waiting(path: Path, mode: str) -> None:
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is a pipe"):
        FileStore(path, mode)


def test_open_of_a_character_device_raises() -> None:
    with pytest.raises(ValueError, match="is a character device"):
        FileStore("/dev/null")


def test_open_without_permission_raises(path: Path) -> None:
    path.write_bytes(b"abc")
    path.chmod(0o600)
    path.parent.chmod(0o711)
    if os.geteuid() != 0:
        pytest.skip("takes root to become somebody else")
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=str(path)):
            FileStore(path)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("path", "kind"), [("", ValueError), ("a\0b", ValueError), ([], ValueError), (3, TypeError), (None, TypeError)]
)
def test_path_that_is_none_raises(path: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="path"):
        FileStore(path)


@pytest.mark.parametrize("mode", ["a", "w", "rb", "c", ""])
def test_mode_that_is_none_raises_naming_those_there_are(mode: str) -> None:
    with pytest.raises(ValueError, match=r"wants one of 'r'"):
        FileStore("x", mode)


def test_direct_that_is_no_choice_raises() -> None:
    with pytest.raises(ValueError, match="direct is 'yes'"):
        FileStore("x", direct="yes")


@pytest.fixture
def block_device(path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a loop device takes root")
    path.write_bytes(bytes(1 << 20))
    command = ["losetup", "-f", "--show", str(path)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "-d", device], check=True)


def test_block_device_has_its_size_and_takes_writes(block_device: Path, path: Path) -> None:
    data = make_bytes(1, 5000)
    with FileStore(block_device, "r+") as store:
        assert store.size == 1 << 20
        store.write(4000, data)
        store.flush()
        assert read(store, 4000, 5000) == data
    assert path.read_bytes()[4000:9000] == data


def test_block_device_with_larger_size_raises(block_device: Path) -> None:
    with pytest.raises(ValueError, match="the device has 1048576 bytes"):
        FileStore(block_device, "r+", size="2MiB")


def test_block_device_in_write_mode_raises_naming_the_remedy(block_device: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be emptied.*'r\+'"):
        FileStore(block_device, "w+", size="1MiB")


def test_parts_are_one_address_space(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b"456789")
    with FileStore([tmp_path / "a", tmp_path / "b", (tmp_path / "c", 5)]) as store:
        assert store.part_sizes == (4, 0, 5)
        assert read(store) == b"012345678"
        assert read(store, 2, 4) == b"2345"
        assert read(store, 4, 1) == b"4"


def test_parts_with_offset_skip_bytes_of_the_first_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    (tmp_path / "b").write_bytes(b"4567")
    with FileStore([tmp_path / "a", tmp_path / "b"], offset=2) as store:
        assert read(store) == b"234567"


def test_parts_with_size_give_the_last_what_is_left(tmp_path: Path) -> None:
    with FileStore([(tmp_path / "a", 10), tmp_path / "b"], "w+", size=25) as store:
        assert store.part_sizes == (10, 15)
    assert (tmp_path / "b").stat().st_size == 15


def test_parts_that_do_not_add_up_to_size_raise_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size is 25, but the parts have 30 bytes"):
        FileStore([(tmp_path / "a", 10), (tmp_path / "b", 20)], "w+", size=25)
    assert os.listdir(tmp_path) == []


def test_parts_of_which_one_exists_raise_in_exclusive_mode_and_leave_no_other(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(errors.StoreExistsError):
        FileStore([(tmp_path / "a", 10), (tmp_path / "b", 20)], "x")
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"old"


def test_parts_that_name_a_file_twice_raise_when_writable(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="given twice"):
        FileStore([tmp_path / "a", tmp_path / "b"], "r+")
    with FileStore([tmp_path / "a", tmp_path / "b"]) as store:
        assert read(store) == b"01230123"


def test_parts_that_are_no_pairs_raise() -> None:
    with pytest.raises(TypeError, match=r"part is \('a', 1, 2\)"):
        FileStore([("a", 1, 2)])


def test_write_across_parts_fails_at_the_byte_that_could_not_be_written(tmp_path: Path) -> None:
    with FileStore([(tmp_path / "a", 10), (tmp_path / "b", 20)], "w+") as store:
        os.truncate(tmp_path / "b", 3)
        with pytest.raises(errors.StoreTruncatedError, match=str(tmp_path / "b")) as caught:
            store.write(5, bytes(20))
        assert (caught.value.offset, caught.value.length) == (10, 15)


def test_pickle_opens_the_same_stretch_for_reading(path: Path) -> None:
    with FileStore(path, "w+", offset=5, size=100, direct=False) as store:
        store.write(0, b"abc")
        with pickle.loads(pickle.dumps(store)) as again:
            path.write_bytes(path.read_bytes() + b"more")
            assert (again.mode, again.size, again.offset, again.direct) == ("r", 100, 5, False)
            assert read(again, 0, 3) == b"abc"


def test_store_that_is_never_closed_warns_and_closes(path: Path) -> None:
    store = FileStore(path, "w+", size=10)
    with pytest.warns(ResourceWarning, match="never closed"):
        del store
    FileStore(path, "r+").close()


def test_close_waits_for_calls_in_other_threads(path: Path) -> None:
    store = DelayStore(FileStore(path, "w+", size=SIZE), 0.3, op="read")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(store)))
    reader.start()
    while store.calls == 0:
        pass
    store.close()
    reader.join(10)
    assert got == [bytes(SIZE)]


def test_release_hands_the_store_over_once(path: Path) -> None:
    store = FileStore(path, "w+", size=10)
    handle = store._release()
    with pytest.raises(errors.ClosedError, match="belongs to"):
        store.read_into(0, bytearray(1))
    with pytest.raises(errors.ClosedError, match="belongs to"):
        store._release()
    store.close()
    assert not store.closed
    assert lib.um_store_close(handle, ffi.new("um_error *")) == 0


def test_repr_names_path_mode_and_size(path: Path) -> None:
    store = FileStore(path, "w+", size="1MiB")
    assert repr(store) == f"<FileStore {str(path)!r}, mode 'w+', 1 MiB>"
    store.close()
    assert "closed" in repr(store)
