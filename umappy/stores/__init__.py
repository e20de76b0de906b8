"""Stores: where the bytes of a region live."""

from umappy.stores._zstd_foreign import ForeignInfo, ZstdCostWarning
from umappy.stores.base import Store
from umappy.stores.file import FileStore
from umappy.stores.nbd import NbdInfo, NbdStore
from umappy.stores.wrappers import DelayStore, ErrorStore, LogStore, StoreCall
from umappy.stores.zstd import ZstdInfo, ZstdStore

__all__ = [
    "DelayStore",
    "ErrorStore",
    "FileStore",
    "ForeignInfo",
    "LogStore",
    "NbdInfo",
    "NbdStore",
    "Store",
    "StoreCall",
    "ZstdCostWarning",
    "ZstdInfo",
    "ZstdStore",
]
