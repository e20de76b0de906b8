"""docs/performance.md, made of a run alone: nothing in it is written by hand but how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from findings.canvas import Plot
from findings.headlines import make_headlines
from findings.losses import make_loss_table
from findings.model import Findings
from findings.tables import Table, make_tables
from umappy.sizes import format_size

INTRODUCTION = """\
<!-- Made by `make bench-publish` from the JSON of a run: do not edit. -->

# Performance

umappy beside its peers, in the same run and under the same memory limit. `make bench` measures the small sizes in
minutes, `make bench-full` larger ones in an hour.
"""
METHOD = """\
## How it was measured

- Each round of each contender is a process of its own in a memory limit of its own, which counts the page cache, too.
  The page cache is emptied before.
- Contenders take turns, round by round. A ratio is made of two times of the same round; tables show the median of the
  ratios, and the spread is their least and greatest. Rates are of the median time.
- Every result is checked. A contender that gives up stands in the table with its reason.
- "time / umappy's": how many times as long as umappy a contender took. Below 1 it is the faster one.
- "CPU": seconds of all its threads for each GB (10^9 bytes) or item. "read" and "written": what the device moved, in
  bytes for each byte of work, or for each item. "peak memory": the most that was charged to its limit in any round.
- "numpy in RAM" computes on an array that was read before and needs no limit but memory; "device" is what the device
  gives past the page cache, at its best depth. They are ceilings, no peers.
- The device "fast" is ext4 on a loop device with direct I/O over tmpfs, which repeats well and stands for fast NVMe;
  "disk" is the machine's own.
- "uncapped": nothing could limit its memory, for want of rights.
"""
COLUMNS_NOTE = (
    "Peer's time / umappy's: how many times as long as umappy the peer took. Below 1x the peer is the faster one."
)


def format_page(findings: Findings, plots: Mapping[str, Sequence[Plot]], folder: Path) -> str:
    """Returns the page as Markdown. Plots are linked relative to `folder`, where the page lies."""
    parts = [INTRODUCTION]
    if headlines := make_headlines(findings):
        parts += ["## In short\n", headlines.format_markdown(), COLUMNS_NOTE + "\n"]
    parts += [*_format_losses(findings), _format_machine(findings), METHOD]
    for subject in findings.subjects:
        parts.append(f"## {subject}\n")
        parts += [_format_plot(plot, folder) for plot in plots.get(subject, ())]
        tables = make_tables(findings, subject)
        for table in tables:
            if len(tables) > 1:
                parts.append(f"### {table.title}\n")
            parts.append(table.format_markdown())
    return "\n".join(parts)


def _format_plot(plot: Plot, folder: Path) -> str:
    return f"![{plot.title}]({plot.path.relative_to(folder).as_posix()})\n"


def _format_losses(findings: Findings) -> list[str]:
    table = make_loss_table(findings, of_peers=True)
    parts = ["## Where peers win\n"]
    if table.rows:
        parts += ["Every comparison in which a peer is faster than umappy, the worst first.\n", table.format_markdown()]
    else:
        parts.append("In no comparison of this run is a peer faster than umappy.\n")
    ceilings = make_loss_table(findings, of_peers=False)
    if ceilings.rows:
        parts += ["Below what a ceiling allows, the farthest first:\n", ceilings.format_markdown()]
    return parts


def _format_machine(findings: Findings) -> str:
    table = Table("", ("what", "value"), tuple(describe_run(findings)))
    return f"## On what\n\n{table.format_markdown()}"


def describe_run(findings: Findings) -> list[tuple[str, str]]:
    """Returns what was measured on what, as (name, value)."""
    machine, scale = findings.machine, findings.scale
    rows: list[tuple[str, Any]] = [
        ("when", machine.get("time")),
        ("machine", f"{machine.get('machine')}, {machine.get('cores')} cores"),
        ("processor", machine.get("processor")),
        ("kernel", machine.get("kernel")),
        ("load when it ended", ", ".join(f"{load:.2f}" for load in machine.get("load", ()))),
        ("umappy", f"commit {machine.get('commit')}"),
        ("Python", machine.get("python")),
        *sorted(machine.get("versions", {}).items()),
        *sorted(machine.get("environment", {}).items()),
        ("memory limits by", {"none": "nothing: uncapped"}.get(machine.get("cap", ""), machine.get("cap"))),
        ("scale", f"{scale.get('name')}, {findings.rounds} rounds"),
    ]
    sizes = [
        ("size of the file", "size"), ("memory limit", "limit")
    ]  # fmt: skip
    rows += [(label, format_size(int(scale[name]))) for label, name in sizes if name in scale]
    for name, place in sorted(findings.places.items()):
        about = ", ".join(f"{key} {value}" for key, value in sorted(place.items()) if value is not None)
        rows.append((f"device {name}", about or None))
    return [(name, str(value)) for name, value in rows if value]
