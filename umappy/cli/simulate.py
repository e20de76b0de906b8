"""`umappy simulate TRACE`: what each eviction policy would make of a recorded trace, at each size of memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from umappy.cli.chart import check_plot, draw_chart, save_chart
from umappy.cli.failure import CommandError
from umappy.cli.table import print_table
from umappy.eviction import POLICIES, Simulation, read_policy, simulate
from umappy.sizes import format_size, parse_size
from umappy.trace import Trace, read_trace

DEFAULT_SIZES = 6
PAGES_MIN = 16  # of the largest region: less is no budget

EPILOG = """\
example:
  python -c 'import umappy; pager = umappy.Pager("64MiB", trace="faults.trace"); ...'
  umappy simulate faults.trace --memory 64MiB,128MiB,256MiB --policy fifo,auto --plot curve.png

A trace holds faults: the misses of the pager that recorded it, and touches of pages in standby. Touches of pages that
were in memory left no mark. So:
- the hit ratios are of the faults recorded, not of all touches, and lower than the program's own;
- they compare policies, and sizes from the recording budget up; below it they are too good, as touches are missing;
- for the whole string of references record under the smallest budget that works, and without read-ahead
  (advise "random"): what stays unseen then are touches of the few pages in memory.
The simulated pager has one thread, does not read ahead, and all of its memory holds pages.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "simulate",
        help="compare eviction policies and budgets on a recorded trace of faults",
        description="Replays a trace of faults, as Pager(trace=PATH) records it, through the eviction policies at "
        "several sizes of memory, and prints the share of faults that each would have saved.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", metavar="TRACE", help="file that Pager(trace=PATH) wrote")
    parser.add_argument(
        "--memory", help="sizes with commas between (default: up to all pages touched, by factors of 2)"
    )
    parser.add_argument("--policy", help=f"policies with commas between (default: all: {','.join(POLICIES)})")
    parser.add_argument(
        "--standby",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="victims wait where a touch is seen; --no-standby: as on kernels before 6.8",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the curve to a file as well: .png, .svg, .pdf")
    parser.add_argument("--partial", action="store_true", help="accept a trace whose end is missing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    policies = parse_policies(arguments.policy)
    sizes = parse_sizes(arguments.memory)
    if arguments.plot:
        check_plot(arguments.plot)
    trace = read_trace(arguments.trace, partial=arguments.partial)
    if len(trace.faults) == 0:
        raise CommandError(f"{arguments.trace} holds no faults: there is nothing to simulate")
    page_size = max(region.page_size for region in trace.regions.values())
    if sizes is None:
        sizes = choose_sizes(trace.working_set, page_size)
    elif min(sizes) < page_size:
        raise CommandError(f"--memory has {format_size(min(sizes))}, less than a page of {format_size(page_size)}", 2)
    results = [[_simulate(trace, policy, size, arguments.standby) for policy in policies] for size in sizes]
    _print(trace, policies, sizes, results)
    ratios = [[result.hit_ratio for result in row] for row in results]
    print("\n".join(draw_chart(policies, [format_size(size) for size in sizes], ratios)))
    if arguments.plot:
        save_chart(arguments.plot, policies, sizes, ratios)
    return 0


def parse_policies(text: str | None) -> list[str]:
    names = list(POLICIES) if text is None else [name.strip() for name in text.split(",")]
    try:
        return list(dict.fromkeys(read_policy(name, "--policy").name for name in names))
    except ValueError as error:
        raise CommandError(str(error), 2) from None


def parse_sizes(text: str | None) -> list[int] | None:
    """Sizes in rising order; None: not given."""
    if text is None:
        return None
    try:
        return sorted({parse_size(size, "--memory") for size in text.split(",")})
    except ValueError as error:
        raise CommandError(str(error), 2) from None


def choose_sizes(working_set: int, page_size: int) -> list[int]:
    """From all that was touched down, by factors of two."""
    sizes = (-(-(working_set >> step) // page_size) * page_size for step in range(DEFAULT_SIZES))
    return sorted({size for size in sizes if size >= PAGES_MIN * page_size} or {working_set})


def _simulate(trace: Trace, policy: str, memory: int, standby: bool) -> Simulation:
    if sys.stderr.isatty():
        print(f"\r\033[Ksimulating {policy} at {format_size(memory)}", end="\r\033[K", file=sys.stderr, flush=True)
    page_sizes = {number: region.page_size for number, region in trace.regions.items()}
    regions, pages = trace.faults["region"], trace.faults["page"]
    return simulate(policy, regions, pages, memory=memory, page_sizes=page_sizes, standby=standby)


def _print(
    trace: Trace, policies: Sequence[str], sizes: Sequence[int], results: Sequence[Sequence[Simulation]]
) -> None:
    title = f"Hits, of {len(trace.faults):,} faults on {format_size(trace.working_set)} of pages"
    if trace.lost:
        title += f"; {trace.lost:,} more were not recorded, as they came too fast"
    rows = [
        [format_size(size), *(f"{100 * result.hit_ratio:.1f} %" for result in row)]
        for size, row in zip(sizes, results, strict=True)
    ]
    print_table(title, ["memory", *policies], rows)
