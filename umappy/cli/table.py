"""Tables on stdout: by rich where it is installed and stdout is a terminal, else plain text."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells, the first column to the left, the others to the right."""
    if not (sys.stdout.isatty() and _print_rich(title, header, rows)):
        print(format_table(title, header, rows))


def format_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the table as plain text."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def format_row(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([title, format_row(header), rule, *map(format_row, rows), ""])


def _print_rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(title=title, title_justify="left")
    for column, name in enumerate(header):
        table.add_column(name, justify="right" if column else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
    return True
