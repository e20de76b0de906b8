"""Whether umappy became slower since a run that was kept: `make bench-compare BASE=old.json`, or

    python benchmarks/compare.py old.json bench.json --tolerance 0.25

Compares ratios to the peers of the same run, never times. Slower is what fell by more than the tolerance and out of
the spread of the rounds; of one round alone it is told, not judged. Exit status: 0, 1 where something is slower, 2
where the files cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from findings.guard import TOLERANCE, describe_pair, judge, make_change_table
from findings.read import FindingsError, read_findings
from umappy.cli.table import print_table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the JSON of before")
    parser.add_argument("now", type=Path, help="the JSON of now")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="part of umappy's time (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        verdict = judge(read_findings(arguments.base), read_findings(arguments.now), arguments.tolerance)
    except FindingsError as error:
        print(error, file=sys.stderr)
        return 2
    for pair in verdict.missing:
        print("not measured now:", ": ".join(describe_pair(pair)))
    for change in verdict.unsure:
        where, against = describe_pair(change.pair)
        print(f"slower by {change.slower_by:.2f}x, but of one round, not judged: {where}: {against}")
    print(f"{len(verdict.changes)} ratios compared, {len(verdict.worse)} worse by more than {arguments.tolerance:.0%}")
    if verdict.worse:
        table = make_change_table(verdict.worse)
        print_table(table.title, table.header, table.rows)
    return 1 if verdict.worse else 0


if __name__ == "__main__":
    sys.exit(main())
