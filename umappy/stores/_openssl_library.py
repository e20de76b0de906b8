"""Finding OpenSSL for the engine, which calls it through a table of function pointers."""

from __future__ import annotations

from dataclasses import dataclass

from umappy._engine import ffi, lib
from umappy.stores.native import make_record_error


@dataclass(frozen=True)
class OpensslLibrary:
    """The OpenSSL in use: the file of its libssl, and its version as (major, minor, patch)."""

    where: str
    version: tuple[int, int, int]


def find_openssl_library() -> OpensslLibrary:
    """Returns the OpenSSL of this process, having found it if nobody did before.

    StoreError, with the remedy, when there is none.
    """
    record, where = ffi.new("um_error *"), ffi.new("char const **")
    version = lib.um_openssl_find(where, record)
    if version < 0:
        raise make_record_error(record)
    major, minor = version >> 28, version >> 20 & 0xFF
    # Until 3.0 the third number was where there are zeros now, and what is there now a letter.
    patch = version >> 4 & 0xFF if major >= 3 else version >> 12 & 0xFF
    return OpensslLibrary(ffi.string(where[0]).decode("utf-8", "backslashreplace"), (major, minor, patch))
