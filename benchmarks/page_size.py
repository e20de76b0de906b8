"""Cold sequential and random reads of a file for each page size: the table in docs/design.md.

    python benchmarks/page_size.py FILE

FILE holds float64 and is larger than the budget; each page size is read by a process of its own in a cgroup of 512 MiB,
the page cache dropped before (needs root).
"""

from __future__ import annotations

import sys

from harness.errors import ContenderError
from harness.trial import Trial
from rows.page_sizes import read_file
from umappy.cli.table import print_table
from umappy.sizes import parse_size

LIMIT = 512 << 20
BUDGET = 256 << 20
PAGE_SIZES = ("4KiB", "16KiB", "64KiB", "256KiB", "1MiB", "2MiB")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    rows = []
    for page_size in PAGE_SIZES:
        arguments = {"path": sys.argv[1], "memory": BUDGET, "page_size": parse_size(page_size)}
        try:
            values = Trial(read_file, arguments, LIMIT).run().values
        except ContenderError as error:
            print(f"{page_size}: {error}", file=sys.stderr)
            return 1
        rows.append([page_size, f"{values['bytes_per_second'] / 1e9:.2f}", f"{values['seconds_per_read'] * 1e6:.0f}"])
    print_table(sys.argv[1], ["page", "sequential sum, GB/s", "random 8 bytes, us"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
