"""The targets of NbdStore's speed, each against libnbd with the same server: `make bench-nbd`, or

    .venv/bin/python benchmarks/nbd.py --rows sequential,random --rounds 3 --size 2GiB
    .venv/bin/python benchmarks/nbd.py --quick                   # a small file, one round: does it all work?

The server is nbdkit, on a unix socket, over a file of the kernel's memory (/dev/shm), so that no disk is measured. It
runs outside of the cgroups that contenders have. Cgroups, rounds and verdicts are those of targets.py; its devices mean
nothing here. Needs root, gcc, nbdkit, libnbd-bin and libnbd-dev.
"""

from __future__ import annotations

import argparse
import sys

from rows.nbd_server import find_missing
from targets import add_arguments, choose, run

SUBJECTS = {
    "sequential": "rows.nbd_sequential",
    "random": "rows.nbd_random",
    "single": "rows.nbd_single",
    "delay": "rows.nbd_delay",
}
QUICK = {"size": "256MiB", "limit": "256MiB", "rounds": 1, "reads": 1_000, "limit_seconds": 0.1}
FULL = {"size": "2GiB", "limit": "512MiB", "rounds": 5, "reads": 4_000, "limit_seconds": 0.1}


def main() -> int:
    arguments = parse_arguments()
    if missing := find_missing():
        print(
            f"nbd: there is no {', '.join(missing)}: apt-get install nbdkit libnbd-bin libnbd-dev gcc",
            file=sys.stderr,
        )
        return 1
    title = f"nbdkit over {arguments.size}, cgroup of {arguments.limit}, rounds: {arguments.rounds}"
    return run("nbd", arguments, SUBJECTS, title)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, SUBJECTS, "bench-nbd.json")
    arguments = choose(parser, SUBJECTS, QUICK, FULL)
    arguments.devices = []
    return arguments


if __name__ == "__main__":
    sys.exit(main())
