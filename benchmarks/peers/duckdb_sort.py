"""DuckDB's external sort, from Parquet to Parquet.

As its guides recommend for little memory: half of the limit, no order kept but the one asked for, and spilled to the
device that the data lies on. Parquet, as of files that are not its own this is what it reads and writes best.
"""

from __future__ import annotations

from harness.child import Meter
from peers.arrays import THREADS
from peers.numpy_sort import sync


def sort_duckdb(meter: Meter, path: str, out: str, limit: int) -> dict[str, float]:
    """Sorts the table at `path` into `out`, on the disk when measuring ends. Scratch stays beside `out`."""
    import duckdb

    settings = {
        "memory_limit": f"{limit // 2}B",
        "temp_directory": f"{out}.scratch",
        "threads": THREADS,
        "preserve_insertion_order": False,
    }
    select = f"SELECT x FROM read_parquet('{path}') ORDER BY x"
    with meter:
        with duckdb.connect(config=settings) as connection:
            connection.execute(f"COPY ({select}) TO '{out}' (FORMAT parquet, COMPRESSION uncompressed)")
        sync(out)
    return {}
