"""The table in the README, between two markers that nobody else writes between."""

from __future__ import annotations

from pathlib import Path

from findings.headlines import make_headlines
from findings.model import Findings
from findings.page import COLUMNS_NOTE
from findings.read import FindingsError

BEGIN, END = "<!-- performance -->", "<!-- /performance -->"

LINK = "All that was measured, plots, and where peers win: [docs/performance.md](docs/performance.md)."


def update_readme(path: Path, findings: Findings) -> None:
    """Replaces what lies between the markers; FindingsError, and the file as it was, where that cannot be done."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FindingsError(f"{path}: no lines {BEGIN} and {END}, in this order: put them where the table belongs")
    content = format_readme(findings)
    if content is None:
        raise FindingsError(
            f"{path}: this run has none of the comparisons that the README shows: run all of bench_*.py"
        )
    path.write_text(f"{before}{BEGIN}\n{content}{END}{after}")


def format_readme(findings: Findings) -> str | None:
    """None where the run has no headline."""
    table = make_headlines(findings)
    if table is None:
        return None
    machine = findings.machine
    where = f"{machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}, numpy {machine['numpy']}"
    how = f"`make bench{'-full' if findings.scale.get('name') == 'full' else ''}`"
    uncapped = ", without a memory limit" if machine.get("cap") == "none" else ""
    lines = f"Measured {machine['time'][:10]} by {how} on a machine of {where}{uncapped}.\n{COLUMNS_NOTE}\n"
    return f"{lines}\n{table.format_markdown()}\n{LINK}\n"
