"""The command `umappy`; also `python -m umappy`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from umappy.cli import cat, demo, doctor, info, pack, simulate, verify
from umappy.cli import sort as sort_command
from umappy.cli.failure import CommandError
from umappy.errors import UmapError

EXIT_FAILED = 1
EXIT_USAGE = 2  # argparse's own
EXIT_INTERRUPTED = 130  # as shells report SIGINT


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="umappy",
        description="Arrays larger than memory. Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (sort_command, pack, cat, verify, info, simulate, demo, doctor):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parsed = make_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except KeyboardInterrupt as error:
        _report("interrupted", error)
        return EXIT_INTERRUPTED
    except (CommandError, UmapError, OSError, MemoryError, ValueError, TypeError) as error:
        _report(str(error) or type(error).__name__, error)
        return error.status if isinstance(error, CommandError) else EXIT_FAILED


def _report(message: str, error: BaseException) -> None:
    notes = getattr(error, "__notes__", [])
    print("\n".join([f"umappy: {message}", *notes]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
