"""The targets of compressed files' speed and space, each against its peer: `make bench-zstd`, or

    .venv/bin/python benchmarks/zstd.py --rows sequential,random --rounds 3 --size 2GiB
    .venv/bin/python benchmarks/zstd.py --quick                  # small files, one round: does it all work?

Data of two kinds: "3x", which compresses about so much, and "noise", which does not. Peers are what the extra `bench`
installs: blosc2, zarr 3, h5py with hdf5plugin, all with zstd at level 3 and 2 threads; and the zstd tool. Devices,
cgroups, rounds and verdicts are those of targets.py. Needs root, gcc and zstd.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys

from targets import add_arguments, choose, run
from umappy.sizes import parse_size

SUBJECTS = {"sequential": "rows.zstd_sequential", "random": "rows.zstd_random", "rewrite": "rows.zstd_rewrite"}
PEERS = ("blosc2", "zarr", "h5py", "hdf5plugin")
QUICK = {"size": "256MiB", "limit": "256MiB", "rounds": 1, "reads": 2_000, "limit_seconds": 0.1}
FULL = {"size": "2GiB", "limit": "512MiB", "rounds": 3, "reads": 20_000, "limit_seconds": 0.4}
# Of both kinds: raw, and compressed by umappy, blosc2, zarr and h5py; then copies that are written to.
FORMS = 2 * (1 + 4 * 0.75) + 4


def main() -> int:
    arguments = parse_arguments()
    if missing := [name for name in PEERS if importlib.util.find_spec(name) is None]:
        print(f"zstd: not installed: {', '.join(missing)}; pip install -e '.[bench]'", file=sys.stderr)
        return 1
    title = f"zstd level 3, {arguments.size}, cgroup of {arguments.limit}, rounds: {arguments.rounds}"
    return run("zstd", arguments, SUBJECTS, title, int(FORMS * parse_size(arguments.size)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, SUBJECTS, "bench-zstd.json")
    return choose(parser, SUBJECTS, QUICK, FULL)


if __name__ == "__main__":
    sys.exit(main())
