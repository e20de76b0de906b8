import copy
import errno
import os
import pickle
import re
from pathlib import Path

import pytest

from umappy import errors
from umappy.errors import make_store_error

HEADER = Path(__file__).parent.parent / "umappy/engine/umappy.h"


def test_codes_are_those_of_the_header() -> None:
    header = dict(re.findall(r"#define UM_(E[A-Z]+|OP_[A-Z]+) (\d+)", HEADER.read_text()))
    ours = {name: str(value) for name, value in vars(errors).items() if re.fullmatch(r"E[A-Z]+|OP_[A-Z]+", name)}
    assert len(header) >= 10
    assert header == ours


@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [
        (errors.ETRUNCATED, errors.StoreTruncatedError, errno.EIO),
        (errors.ECORRUPT, errors.StoreCorruptError, errno.EBADMSG),
        (errors.ELOCKED, errors.StoreLockedError, errno.EAGAIN),
        (errors.EDROPPED, errors.StoreError, errno.EIO),
        (errno.ETIMEDOUT, errors.StoreTimeoutError, errno.ETIMEDOUT),
        (errno.ENOSPC, errors.StoreFullError, errno.ENOSPC),
        (errno.EDQUOT, errors.StoreFullError, errno.EDQUOT),
        (errno.ENOENT, errors.StoreNotFoundError, errno.ENOENT),
        (errno.EEXIST, errors.StoreExistsError, errno.EEXIST),
        (errno.EACCES, errors.StorePermissionError, errno.EACCES),
        (errno.EIO, errors.StoreError, errno.EIO),
        (-errno.EIO, errors.StoreError, errno.EIO),
    ],
)
def test_make_store_error_code_gives_class_and_errno(code: int, kind: type[Exception], number: int) -> None:
    error = make_store_error(code, "/data/x.bin", offset=4096, length=65536, op=errors.OP_WRITE)
    assert type(error) is kind
    assert error.errno == number
    assert (error.store, error.op, error.offset, error.length) == ("/data/x.bin", "write", 4096, 65536)


def test_make_store_error_forked_gives_forked_region_error() -> None:
    error = make_store_error(errors.EFORKED, "/data/x.bin")
    assert type(error) is errors.ForkedRegionError
    assert str(os.getpid()) in str(error)
    assert "spawn" in str(error)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.StoreError, OSError),
        (errors.StoreNotFoundError, FileNotFoundError),
        (errors.StoreExistsError, FileExistsError),
        (errors.StorePermissionError, PermissionError),
        (errors.StoreTruncatedError, errors.StoreError),
        (errors.StoreCorruptError, errors.StoreError),
        (errors.StoreLockedError, errors.StoreError),
        (errors.StoreTimeoutError, TimeoutError),
        (errors.StoreFullError, errors.StoreError),
        (errors.ForkedRegionError, RuntimeError),
        (errors.ClosedError, ValueError),
        (errors.UffdUnavailableError, OSError),
        (errors.BudgetError, MemoryError),
    ],
)
def test_error_is_also_the_builtin_a_user_would_catch(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)
    assert issubclass(kind, errors.UmapError)


def test_store_error_read_message_says_what_where_and_why() -> None:
    error = make_store_error(errors.ETRUNCATED, "/data/x.bin", offset=4096, length=65536)
    assert str(error) == (
        "cannot read the store at offset 4096 (64 KiB): /data/x.bin: the store ended before its size; "
        "something made it shorter while it was mapped"
    )


def test_store_error_message_says_the_reason_once() -> None:
    error = make_store_error(errno.EIO, "/data/x.bin: pread: Input/output error", length=1)
    assert str(error) == "cannot read the store at offset 0 (1 B): /data/x.bin: pread: Input/output error"


@pytest.mark.parametrize(("op", "verb"), [(errors.OP_OPEN, "open"), (errors.OP_FLUSH, "flush")])
def test_store_error_of_the_whole_store_names_no_offset(op: int, verb: str) -> None:
    error = make_store_error(errno.EIO, "/data/x.bin", op=op)
    assert str(error) == f"cannot {verb} the store: /data/x.bin: Input/output error"
    assert error.offset is None
    assert error.length is None


def test_store_error_without_words_gives_the_reason_alone() -> None:
    assert str(make_store_error(errno.EIO, op=errors.OP_FLUSH)) == "cannot flush the store: Input/output error"


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_store_error_copy_keeps_everything(duplicate) -> None:
    error = make_store_error(errno.ENOSPC, "/data/x.bin", offset=8192, length=4096, op=errors.OP_WRITE)
    error.add_note("while sorting")
    twin = duplicate(error)
    assert type(twin) is errors.StoreFullError
    assert str(twin) == str(error)
    assert (twin.errno, twin.strerror, twin.__notes__) == (errno.ENOSPC, error.strerror, ["while sorting"])
    assert (twin.store, twin.op, twin.offset, twin.length) == ("/data/x.bin", "write", 8192, 4096)


def test_uffd_unavailable_error_not_allowed_names_every_fix() -> None:
    message = str(errors.UffdUnavailableError(errno.EPERM, "/dev/userfaultfd, the system call"))
    assert message.startswith(
        "userfaultfd is not available: Operation not permitted (tried /dev/userfaultfd, the system call). "
    )
    for fix in ("--device /dev/userfaultfd", "sysctl vm.unprivileged_userfaultfd=1", "UMAPPY_UFFD=user-mode-only"):
        assert fix in message


def test_uffd_unavailable_error_unknown_to_the_kernel_names_the_kernel() -> None:
    message = str(errors.UffdUnavailableError(errno.ENOSYS))
    assert "Linux 5.7" in message
    assert "--device" not in message


def test_uffd_unavailable_error_pickled_keeps_errno() -> None:
    error = pickle.loads(pickle.dumps(errors.UffdUnavailableError(errno.EACCES, "the system call")))
    assert (error.errno, error.tried) == (errno.EACCES, "the system call")
