"""umappy: memory mapping in user space. Arrays larger than memory, over files and other stores, within a budget."""

from umappy import stores
from umappy._umap import umap
from umappy.config import config
from umappy.errors import (
    BudgetError,
    ClosedError,
    ForkedRegionError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreTimeoutError,
    StoreTruncatedError,
    UffdUnavailableError,
    UmapError,
)
from umappy.load import load
from umappy.open_store import open_store
from umappy.pager import Pager, default_pager
from umappy.region import Region
from umappy.save import save
from umappy.sort import sort
from umappy.stats import Residency, Stats
from umappy.stores import FileStore, NbdStore, Store, ZstdStore
from umappy.take import take

__all__ = [
    "BudgetError",
    "ClosedError",
    "FileStore",
    "ForkedRegionError",
    "NbdStore",
    "Pager",
    "Region",
    "Residency",
    "Stats",
    "Store",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "StoreTimeoutError",
    "StoreTruncatedError",
    "UffdUnavailableError",
    "UmapError",
    "ZstdStore",
    "config",
    "default_pager",
    "load",
    "open_store",
    "save",
    "sort",
    "stores",
    "take",
    "umap",
]
