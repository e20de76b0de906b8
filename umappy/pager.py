"""The pager: a budget and the threads that keep regions within it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self, SupportsIndex

from umappy import _delivery, _exit, errors
from umappy._engine import ffi, lib
from umappy._handle import Handle
from umappy.config import Config, Mechanism, Uffd, choose_fillers, config
from umappy.eviction import Policy
from umappy.sizes import format_size, parse_size
from umappy.stats import Stats, make_stats

if TYPE_CHECKING:
    from umappy._engine import um_pager

_UFFD = {
    "auto": lib.UM_UFFD_AUTO,
    "device": lib.UM_UFFD_DEVICE,
    "syscall": lib.UM_UFFD_SYSCALL,
    "user-mode-only": lib.UM_UFFD_USER_MODE_ONLY,
}
_MECHANISM = {"auto": lib.UM_MECHANISM_AUTO, "copy": lib.UM_MECHANISM_COPY, "move": lib.UM_MECHANISM_MOVE}
RESERVE_SLICE_MS = 100


class Pager:
    """A budget of memory, and native threads that fill and evict the pages of its regions within it.

    `memory` is the budget: bytes, "4GiB" or "auto" (half of what the cgroup or the machine can give). Everything of
    the pager's that is resident counts: pages, buffers, page tables, bookkeeping. `fillers` threads read pages ("auto":
    8 to 32, by the budget), `evictors` threads write them back. Eviction starts when less than `low_water` bytes of
    the budget are free and stops at `high_water`. `timeout_seconds` bounds how long a failing store is retried and a
    fault waits for memory.

    `policy` says which pages leave memory first: "auto", "fifo", "second_chance", "s3fifo", "mru", or one of the
    classes of `umappy.eviction` with its parameters. `mechanism` is "auto", "copy" or "move" (Linux 6.8). `trace` is a
    file that every fault is recorded in, for `umappy simulate` and `umappy.trace.read_trace`.

    A pager lives until it is closed, or until it and all its regions are garbage. As a context manager it closes at the
    end of the block.

    Raises BudgetError when the budget cannot hold even the smallest pages, UffdUnavailableError when the kernel does
    not allow paging, ValueError for values that are none.
    """

    def __init__(
        self,
        memory: SupportsIndex | str | None = None,
        *,
        fillers: SupportsIndex | str | None = None,
        evictors: SupportsIndex | None = None,
        low_water: SupportsIndex | str | None = None,
        high_water: SupportsIndex | str | None = None,
        timeout_seconds: float | None = None,
        uffd: Uffd | None = None,
        mechanism: Mechanism | None = None,
        policy: Policy | str | None = None,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        _set_io_uring()
        self._memory = config.resolve(Config.memory, memory)
        low, high = self._choose_water(low_water, high_water)
        threads = config.resolve(Config.fillers, fillers)
        options = {
            "memory": self._memory,
            "fillers": choose_fillers(self._memory) if threads == "auto" else threads,
            "evictors": config.resolve(Config.evictors, evictors),
            "low_water": low,
            "high_water": high,
            "timeout_ms": round(config.resolve(Config.timeout_seconds, timeout_seconds) * 1000),
            "uffd": _UFFD[config.resolve(Config.uffd, uffd)],
            "mechanism": _MECHANISM[config.resolve(Config.mechanism, mechanism)],
        }
        self._policy = config.resolve(Config.policy, policy)
        shares = self._policy.shares()
        options |= {"policy": self._policy.kind, "policy_shares": True}
        options |= {"small_share": shares.small, "standby_share": shares.standby, "ghost_share": shares.ghosts}
        trace_path = ffi.NULL if trace is None else ffi.new("char[]", os.fsencode(trace))
        options["trace"] = trace_path
        out = ffi.new("um_pager **")
        code = lib.um_pager_create(ffi.new("um_pager_options *", options), out)
        if code == -errno.ENOBUFS:
            raise make_budget_error(self._memory, 4096, options["fillers"], options["evictors"])
        if code in (-errno.EPERM, -errno.EACCES, -errno.ENOSYS, -errno.ENOENT):
            raise errors.UffdUnavailableError(-code, "/dev/userfaultfd, the system call, the system call for user mode")
        if code == -errno.EOPNOTSUPP:
            raise errors.UffdUnavailableError(
                errno.EOPNOTSUPP, "mechanism='move' (UFFDIO_MOVE, Linux 6.8); 'auto' copies where there is none"
            )
        if code and trace is not None:
            raise OSError(-code, f"cannot start a pager with a trace: {os.strerror(-code)}", os.fspath(trace))
        if code:
            raise OSError(-code, f"cannot start a pager: {os.strerror(-code)}")
        self._handle: Handle[um_pager] = Handle(out[0], "the pager")
        _exit.arm()
        _delivery.start()
        self._warn(options["fillers"], options["evictors"])

    def _choose_water(self, low: SupportsIndex | str | None, high: SupportsIndex | str | None) -> tuple[int, int]:
        """Of marks not given, low is 1/32 of the budget and high 1/16, or the other mark where that lies beyond."""
        stop = None if high is None else parse_size(high, "high_water")
        start = min(self._memory // 32, stop or self._memory) if low is None else parse_size(low, "low_water")
        if stop is None:
            stop = max(self._memory // 16, start)
        for name, mark in (("low_water", start), ("high_water", stop)):
            if mark > self._memory // 2:
                raise ValueError(
                    f"{name} is {format_size(mark)}: wants at most half of the budget of {format_size(self._memory)}"
                )
        if start > stop:
            raise ValueError(f"low_water is {format_size(start)}: wants at most high_water, {format_size(stop)}")
        return start, stop

    def _warn(self, fillers: int, evictors: int) -> None:
        stats = self.stats()
        if (stats.fillers, stats.evictors) != (fillers, evictors):
            _delivery.log.warning(
                "the system gave %d of %d fillers and %d of %d evictors",
                *(stats.fillers, fillers, stats.evictors, evictors),
            )
        if stats.uffd == lib.UM_UFFD_USER_MODE_ONLY:
            _delivery.log.warning(
                "userfaultfd is available for user mode only: system calls on pages that are not in memory (tofile, "
                "readinto, send) fail with EFAULT; 'umappy doctor' tells how to get more"
            )

    @property
    def memory(self) -> int:
        """The budget in bytes."""
        return self._memory

    @property
    def policy(self) -> Policy:
        """Which pages leave first, `umappy.eviction`."""
        return self._policy

    @property
    def is_closed(self) -> bool:
        return self._handle.is_closed

    def stats(self) -> Stats:
        """Returns the counters, those of regions already closed included."""
        raw = ffi.new("um_stats *")
        with self._handle.use() as pager:
            lib.um_pager_stats(pager, raw)
        return make_stats(raw)

    @contextlib.contextmanager
    def reserved(self, size: SupportsIndex | str, *, timeout_seconds: float | None = None) -> Iterator[None]:
        """Takes `size` bytes of the budget for memory of the caller's own, for as long as the block runs.

        Pages are evicted to make room. Raises BudgetError when the regions could not go on with what is left,
        TimeoutError when their pages do not leave in time (default: the setting `timeout_seconds`, after the last
        progress).
        """
        wanted = parse_size(size, "size")
        patience = config.resolve(Config.timeout_seconds, timeout_seconds)
        self._reserve(wanted, patience)
        try:
            yield
        finally:
            with self._handle.use() as pager:
                lib.um_pager_release(pager, wanted)

    def _reserve(self, wanted: int, patience: float) -> None:
        with self._handle.use() as pager:
            waited, written = 0.0, -1
            while True:
                code = lib.um_pager_reserve(pager, wanted, RESERVE_SLICE_MS)
                if code != -errno.ETIMEDOUT:
                    break
                progress = self.stats()
                if progress.bytes_written + progress.evictions != written:
                    waited, written = 0.0, progress.bytes_written + progress.evictions
                waited += RESERVE_SLICE_MS / 1000
                if waited >= patience:
                    raise TimeoutError(
                        f"{format_size(wanted)} of the budget of {format_size(self._memory)} did not come free within "
                        f"{patience} seconds: {format_size(progress.dirty)} are dirty"
                    )
        if code == -errno.ENOBUFS:
            raise errors.BudgetError(
                f"cannot reserve {format_size(wanted)} of the budget of {format_size(self._memory)}: its regions "
                "could not go on with what is left; reserve less or give the pager more memory"
            )
        if code:
            raise errors.make_store_error(-code)

    def close(self) -> None:
        """Ends the pager's threads. Does nothing when it is closed; RuntimeError while it has regions."""
        if self._handle.is_forked or (pointer := self._handle.begin_close()) is None:
            return
        code = -errno.EBUSY
        try:
            code = lib.um_pager_destroy(pointer)
        finally:
            self._handle.end_close(closed=code == 0)
        if code:
            raise RuntimeError("the pager still has regions: close them first")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except RuntimeError as error:
            if value is None:
                raise
            value.add_note(str(error))

    def __del__(self) -> None:
        if hasattr(self, "_handle"):  # else __init__ failed
            with contextlib.suppress(Exception):  # at the interpreter's end regions may outlive us
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"memory={format_size(self._memory)}"
        return f"<umappy.Pager {state}>"


def _set_io_uring() -> None:
    """Of the whole process, as the setting is."""
    wanted = config.resolve(Config.io_uring, None)
    code = lib.um_io_uring_set(-1 if wanted == "auto" else int(wanted))
    if code:
        raise OSError(-code, f"io_uring=True (Linux 6.1), but not here: {os.strerror(-code)}; 'auto' does without")


def make_budget_error(memory: int, page_size: int, fillers: int, evictors: int) -> errors.BudgetError:
    least = lib.um_pager_memory_min(page_size, fillers, evictors)
    if memory >= least:
        return errors.BudgetError(
            f"too much of the budget of {format_size(memory)} is reserved for pages of {format_size(page_size)}, which "
            f"want {format_size(least)} of it: map the region before Pager.reserved, or reserve less"
        )
    return errors.BudgetError(
        f"a budget of {format_size(memory)} is too small for pages of {format_size(page_size)} with {fillers} fillers "
        f"and {evictors} evictors: wants at least {least} bytes ({format_size(least)}); give more memory, or smaller "
        "pages, or fewer threads"
    )


_default: Pager | None = None
_default_lock = threading.Lock()


def default_pager() -> Pager:
    """Returns the pager of every region that was given none; made at first use, from the settings then in force."""
    global _default
    with _default_lock:
        if _default is None or _default.is_closed:
            _default = Pager()
            config.freeze("the default pager")
        return _default


def _forget_in_child() -> None:
    global _default, _default_lock
    _default, _default_lock = None, threading.Lock()
    config.thaw()


os.register_at_fork(after_in_child=_forget_in_child)
