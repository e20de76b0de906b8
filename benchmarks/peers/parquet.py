"""Tables of one int64 column `x` in Parquet: what DuckDB and Polars sort, and proof of what they made of it.

Uncompressed, as random numbers do not compress.
"""

from __future__ import annotations

from umappy.cli.data import BLOCK_COUNT, Check, check_blocks


def make(source: str, path: str) -> None:
    """Writes the int64 of the file `source`."""
    import duckdb
    import numpy as np

    numbers = np.memmap(source, np.int64, mode="r")
    with duckdb.connect() as connection:
        connection.register("numbers", {"x": numbers})
        connection.execute(f"COPY (SELECT x FROM numbers) TO '{path}' (FORMAT parquet, COMPRESSION uncompressed)")


def check(path: str) -> Check:
    """Reads it through."""
    import polars

    table = polars.scan_parquet(path).select("x")
    count = table.select(polars.len()).collect().item()
    return check_blocks(
        table.slice(start, BLOCK_COUNT).collect()["x"].to_numpy() for start in range(0, count, BLOCK_COUNT)
    )
