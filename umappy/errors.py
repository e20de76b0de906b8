"""The errors of umappy. Each also is the built-in that a user of mmap and numpy would catch.

    UmapError
    +-- StoreError (OSError)                          a store could not do what was asked
    |   +-- StoreNotFoundError (FileNotFoundError)    there is none
    |   +-- StoreExistsError (FileExistsError)        mode "x", and there is one
    |   +-- StorePermissionError (PermissionError)    we may not
    |   +-- StoreTruncatedError                       it ended before its size
    |   +-- StoreCorruptError                         its bytes are not what was written
    |   +-- StoreLockedError                          somebody else writes it
    |   +-- StoreTimeoutError (TimeoutError)          it did not answer within the deadline
    |   +-- StoreFullError                            no space left, or the quota is used up
    +-- ForkedRegionError (RuntimeError)              touched in a forked child
    +-- ClosedError (ValueError)                      used after close
    +-- UffdUnavailableError (OSError)                the kernel does not let us page
    +-- BudgetError (MemoryError)                     the budget is too small for what was asked

The engine speaks in codes: an errno, or one of its own above 4000 (umappy.h). `make_store_error` turns a code and the
store's words into the class to raise.
"""

import errno
import os
from typing import Self

from umappy.sizes import format_size

# As in umappy.h. Written again so that errors can be made where the engine cannot be loaded;
# tests/test_errors.py holds them against the header.
ETRUNCATED = 4001
ECORRUPT = 4002
ELOCKED = 4003
EDROPPED = 4004
EFORKED = 4005

OP_READ = 1
OP_WRITE = 2
OP_FLUSH = 3
OP_OPEN = 4
OP_MEMORY = 5


class UmapError(Exception):
    """Every error that umappy itself raises, other than for wrong arguments (TypeError, ValueError)."""


class StoreError(UmapError, OSError):
    """A store could not do what was asked.

    `errno` is the system's number, EIO where the cause has none; `strerror` what it means; `filename` is None, as not
    every store has one. `store` holds the store's own words: its path and what failed. `offset` and `length` are bytes
    from the start of the store and None where they mean nothing; `op` is one of "read", "write", "flush", "open",
    "memory".
    """

    store: str
    op: str
    offset: int | None
    length: int | None

    def __init__(
        self,
        number: int,
        reason: str,
        store: str = "",
        op: str = "read",
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(number, reason)
        self.store, self.op, self.offset, self.length = store, op, offset, length

    def __str__(self) -> str:
        return f"{self._describe_attempt()}: {self._describe_cause()}"

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...], dict[str, object]]:
        # OSError's own would keep only errno and strerror for __init__. The dict holds notes, added with add_note.
        arguments = (self.errno, self.strerror, self.store, self.op, self.offset, self.length)
        return type(self), arguments, self.__dict__

    def _describe_attempt(self) -> str:
        if self.op == "open":
            return "cannot open the store"
        if self.op == "flush":
            return "cannot flush the store"
        if self.op == "memory":
            attempt = "lost memory"
        else:
            attempt = f"cannot {self.op} the store"
        if self.offset is not None:
            attempt += f" at offset {self.offset}"
        if self.length is not None:
            attempt += f" ({format_size(self.length)})"
        return attempt

    def _describe_cause(self) -> str:
        # Stores often end their words with the system's; once is enough.
        if not self.store:
            return self.strerror or ""
        if not self.strerror or self.strerror in self.store:
            return self.store
        return f"{self.store}: {self.strerror}"


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no such store."""


class StoreExistsError(StoreError, FileExistsError):
    """Mode "x" was to create a store that exists."""


class StorePermissionError(StoreError, PermissionError):
    """The system does not let this process open, read or write the store."""


class StoreTruncatedError(StoreError):
    """The store ended before its size: something made it shorter while it was mapped."""


class StoreCorruptError(StoreError):
    """The store's bytes are not what was written to it."""


class StoreLockedError(StoreError):
    """Somebody else writes the store."""


class StoreTimeoutError(StoreError, TimeoutError):
    """The store did not answer within its deadline."""


class StoreFullError(StoreError):
    """The store has no space left, or the user's quota is used up. Dirty pages are kept and written again later."""


class ForkedRegionError(UmapError, RuntimeError):
    """A region was used in a forked child, which does not have the threads that page it."""


class ClosedError(UmapError, ValueError):
    """A region, pager or store was used after it was closed."""


class UffdUnavailableError(UmapError, OSError):
    """The kernel does not let this process use userfaultfd. The message names the ways to get it.

    `errno` is what the last attempt failed with: EPERM or EACCES (not allowed), ENOSYS (not in the kernel).
    """

    def __init__(self, number: int, tried: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.tried = tried

    def __str__(self) -> str:
        tried = f" (tried {self.tried})" if self.tried else ""
        return f"userfaultfd is not available: {self.strerror}{tried}. {self._describe_fix()}"

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...], dict[str, object]]:
        return type(self), (self.errno, self.tried), self.__dict__

    def _describe_fix(self) -> str:
        if self.errno == errno.ENOSYS:
            return "umappy needs Linux 5.7 or later, built with CONFIG_USERFAULTFD; sandboxes such as gVisor lack it."
        return (
            "Any one of these helps: in Docker, --device /dev/userfaultfd (Linux 6.1 and later) or a seccomp profile "
            "that allows the system call; on the machine, access to the device for this user (setfacl -m u:NAME:rw "
            "/dev/userfaultfd) or sysctl vm.unprivileged_userfaultfd=1. UMAPPY_UFFD=user-mode-only needs none of them "
            "where the system call is allowed, but then system calls on pages that are not in memory fail with EFAULT."
        )


class BudgetError(UmapError, MemoryError):
    """The budget is too small for what was asked. The message names the least that does."""


# What a code means, where that is not what the system's table says.
_REASONS = {
    ETRUNCATED: "the store ended before its size; something made it shorter while it was mapped",
    ECORRUPT: "the store's bytes are not what was written",
    ELOCKED: "somebody else has it open for writing; close that one, or open read-only, or pass lock=False",
    EDROPPED: "dirty memory was dropped under the pager (madvise with MADV_DONTNEED?); its last writes are lost",
    errno.ETIMEDOUT: "no answer within the deadline (timeout_seconds)",
}
# The errno of the codes that are ours alone, for those who look at errno only.
_NUMBERS = {ETRUNCATED: errno.EIO, ECORRUPT: errno.EBADMSG, ELOCKED: errno.EAGAIN, EDROPPED: errno.EIO}
_CLASSES: dict[int, type[StoreError]] = {
    ETRUNCATED: StoreTruncatedError,
    ECORRUPT: StoreCorruptError,
    ELOCKED: StoreLockedError,
    errno.ETIMEDOUT: StoreTimeoutError,
    errno.ENOSPC: StoreFullError,
    errno.EDQUOT: StoreFullError,
    errno.ENOENT: StoreNotFoundError,
    errno.EEXIST: StoreExistsError,
    errno.EACCES: StorePermissionError,
    errno.EPERM: StorePermissionError,
}
_OPS = {OP_READ: "read", OP_WRITE: "write", OP_FLUSH: "flush", OP_OPEN: "open", OP_MEMORY: "memory"}


def make_store_error(
    code: int, text: str = "", *, offset: int = 0, length: int = 0, op: int = OP_READ
) -> StoreError | ForkedRegionError:
    """Returns the error for the engine's record of a failure.

    `code` is an errno or a UM_E... code, of either sign; `text` the store's words; `offset` and `length` bytes from the
    start of the store (length 0: unknown); `op` a UM_OP_... number.
    """
    code = abs(code)
    if code == EFORKED:
        return make_forked_error()
    reason = _REASONS.get(code) or os.strerror(code)
    has_place = op in {OP_READ, OP_WRITE, OP_MEMORY}
    return _CLASSES.get(code, StoreError)(
        _NUMBERS.get(code, code),
        reason,
        text,
        _OPS.get(op, "read"),
        offset if has_place else None,
        length if has_place and length else None,
    )


def make_forked_error() -> ForkedRegionError:
    return ForkedRegionError(
        f"process {os.getpid()} is a forked child and has no pager for this region: map the store again in the child, "
        "or start the child with the 'spawn' or 'forkserver' method of multiprocessing"
    )
