"""The targets of compressed files' speed and space, each against its peer: `make bench-zstd`, or

    .venv/bin/python benchmarks/zstd.py --rows sequential,random --rounds 3 --size 2GiB
    .venv/bin/python benchmarks/zstd.py --quick                  # small files, one round: does it all work?

Data of two kinds: "3x", which compresses about so much, and "noise", which does not. Peers are what the extra `bench`
installs: blosc2, zarr 3, h5py with hdf5plugin, all with zstd at level 3 and 2 threads; and the zstd tool. Devices,
cgroups, rounds and verdicts are those of targets.py. Needs root, gcc and zstd.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import signal
import subprocess
import sys

from harness.errors import ContenderError
from harness.report import print_report, write_json
from harness.result import Result
from targets import add_arguments, choose, prepare
from umappy.cli.cgroup import CgroupError
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the devices are to be taken away then too
    results: list[Result] = []
    devices = {}
    try:
        with contextlib.ExitStack() as stack:
            bench = prepare(arguments, stack, int(FORMS * parse_size(arguments.size)))
            devices = {place.name: place.describe() for place in bench.places}
            for subject in arguments.rows:
                print(subject, file=sys.stderr, flush=True)
                results += importlib.import_module(SUBJECTS[subject]).measure(bench)
    except KeyboardInterrupt:
        return 130
    except (OSError, subprocess.CalledProcessError, CgroupError, ContenderError) as error:
        print(f"zstd: {error}", file=sys.stderr)
        return 1
    finally:
        if results:
            title = f"zstd level 3, {arguments.size}, cgroup of {arguments.limit}, rounds: {arguments.rounds}"
            print_report(title, results)
            write_json(arguments.json, vars(arguments), devices, results)
    return int(any(result.verdict == "problem" for result in results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, SUBJECTS, "bench-zstd.json")
    return choose(parser, SUBJECTS, QUICK, FULL)


if __name__ == "__main__":
    sys.exit(main())
