"""Stores: where the bytes of a region live."""

from umappy.stores.base import Store
from umappy.stores.file import FileStore
from umappy.stores.wrappers import DelayStore, ErrorStore, LogStore, StoreCall

__all__ = ["DelayStore", "ErrorStore", "FileStore", "LogStore", "Store", "StoreCall"]
