"""Tables, plots and pages of a run: `make bench`, `make bench-publish`, or

    python benchmarks/publish.py bench.json                             # tables in the terminal
    python benchmarks/publish.py bench.json --docs docs --readme README.md

--docs FOLDER: writes FOLDER/performance.md and the plots in FOLDER/performance/, in place of those that were there.
The same JSON gives the same files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from findings.headlines import make_headlines
from findings.losses import make_loss_table
from findings.model import Findings
from findings.page import format_page
from findings.plots import write_plots
from findings.read import FindingsError, read_findings
from findings.readme import update_readme
from findings.tables import make_tables
from umappy.cli.table import print_table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what pytest's --benchmark-json wrote")
    parser.add_argument("--docs", type=Path, help="folder for performance.md and its plots")
    parser.add_argument("--readme", type=Path, help="file whose table of headlines is replaced")
    arguments = parser.parse_args()
    try:
        findings = read_findings(arguments.json)
        if arguments.readme:
            update_readme(arguments.readme, findings)
        if arguments.docs:
            write_docs(findings, arguments.docs)
    except ModuleNotFoundError as error:
        print(f"plots take matplotlib: pip install 'umappy[plot]' ({error})", file=sys.stderr)
        return 2
    except (FindingsError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if not (arguments.docs and arguments.readme):
        print_tables(findings)
    return 0


def write_docs(findings: Findings, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plots = write_plots(findings, folder / "performance")
    page = folder / "performance.md"
    page.write_text(format_page(findings, plots, folder))
    print(f"wrote {page} and {sum(map(len, plots.values()))} plots in {folder / 'performance'}", file=sys.stderr)


def print_tables(findings: Findings) -> None:
    for subject in findings.subjects:
        for table in make_tables(findings, subject):
            print_table(table.title, table.header, table.rows)
            for note in table.notes:
                print(note)
            print()
    losses = make_loss_table(findings, of_peers=True)
    if losses.rows:
        print_table(losses.title, losses.header, losses.rows)
    if headlines := make_headlines(findings):
        print_table("in short", headlines.header, headlines.rows)


if __name__ == "__main__":
    sys.exit(main())
