"""Finding libzstd for the engine, which calls it through a table of function pointers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from umappy._engine import ffi, lib
from umappy.config import config
from umappy.stores.native import make_record_error


@dataclass(frozen=True)
class ZstdLibrary:
    """The libzstd in use: its file, and its version as (major, minor, patch)."""

    where: str
    version: tuple[int, int, int]


def find_zstd_library() -> ZstdLibrary:
    """Returns the libzstd of this process, having found it if nobody did before.

    `config.zstd` says where it is looked for. StoreError, with the remedy, when there is none.
    """
    source = config.zstd
    if source == "zstandard":
        _offer_zstandard(required=True)
    record, where = ffi.new("um_error *"), ffi.new("char const **")
    version = lib.um_zstd_find(where, record)
    if version < 0 and source == "auto":
        _offer_zstandard(required=False)
        version = lib.um_zstd_find(where, record)
    if version < 0:
        raise make_record_error(record)
    return ZstdLibrary(
        ffi.string(where[0]).decode("utf-8", "backslashreplace"),
        (version // 10000, version // 100 % 100, version % 100),
    )


def _offer_zstandard(*, required: bool) -> None:
    """Hands the engine the addresses of the functions of the `zstandard` package's copy: they work on any thread,
    without the GIL. The first library stays, so that offering again does nothing."""
    try:
        # The module of cffi alone: `zstandard` itself would choose its other backend, which shows no addresses.
        from zstandard import _cffi as theirs  # type: ignore[attr-defined]
    except ImportError:
        if required:
            raise
        return
    addresses: list[Any] = []
    while name := lib.um_zstd_name(len(addresses)):
        symbol = ffi.string(name).decode()
        found = hasattr(theirs.lib, symbol)
        address = int(theirs.ffi.cast("uintptr_t", theirs.ffi.addressof(theirs.lib, symbol))) if found else 0
        addresses.append(ffi.cast("void *", address))
    record = ffi.new("um_error *")
    where = ffi.new("char[]", theirs.__file__.encode("utf-8", "surrogateescape"))
    if lib.um_zstd_offer(ffi.new("void *[]", addresses), where, record) < 0 and required:
        raise make_record_error(record)
