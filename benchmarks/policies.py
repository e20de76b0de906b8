"""Misses of every eviction policy on the patterns it is for and on those it is not, in the simulator; docs/eviction.md.

python benchmarks/policies.py [--pages 2000] [--references 300000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from umappy.cli.table import print_table
from umappy.eviction import POLICIES, simulate

PAGE = 4096
Pattern = Callable[[np.random.Generator, int, int], np.ndarray]


def draw_zipf(random: np.random.Generator, items: int, exponent: float, count: int) -> np.ndarray:
    total = np.cumsum(np.arange(1.0, items + 1) ** -exponent)
    return np.searchsorted(total / total[-1], random.random(count))


def make_zipf(random: np.random.Generator, memory: int, count: int) -> np.ndarray:
    items = 10 * memory * PAGE // 8
    return random.integers(0, 10 * memory, items, np.int32)[draw_zipf(random, items, 1.1, count)]


def make_loop(times: float) -> Pattern:
    return lambda random, memory, count: np.arange(count) % int(times * memory)


def make_epochs(random: np.random.Generator, memory: int, count: int) -> np.ndarray:
    return np.concatenate([random.permutation(2 * memory) for _ in range(-(-count // (2 * memory)))])[:count]


def make_beside_scan(random: np.random.Generator, memory: int, count: int) -> np.ndarray:
    hot = draw_zipf(random, memory * 3 // 4, 0.9, count)
    return np.where(np.arange(count) % 3 == 2, 10 * memory + np.arange(count), hot)


def make_moving(random: np.random.Generator, memory: int, count: int) -> np.ndarray:
    return (draw_zipf(random, 3 * memory, 0.9, count) + np.arange(count) * memory // 200_000) % (10 * memory)


def make_walk(random: np.random.Generator, memory: int, count: int) -> np.ndarray:
    return np.abs(np.cumsum(random.integers(-30, 31, count))) % (10 * memory)


PATTERNS: dict[str, Pattern] = {
    "zipf(1.1) of 8-byte items, data 10x": make_zipf,
    "loop over 1.2x": make_loop(1.2),
    "loop over 2x": make_loop(2),
    "loop over 4x": make_loop(4),
    "all of 2x in random order, again and again": make_epochs,
    "hot set of 0.75x beside a scan": make_beside_scan,
    "hot set that moves": make_moving,
    "random walk over 10x": make_walk,
    "uniform over 10x": lambda random, memory, count: random.integers(0, 10 * memory, count),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=2000, help="that the memory holds (default: %(default)s)")
    parser.add_argument("--references", type=int, default=300_000, help="of each pattern (default: %(default)s)")
    parser.add_argument("--no-standby", dest="standby", action="store_false", help="as on kernels before 6.8")
    arguments = parser.parse_args()
    rows = []
    for name, make in PATTERNS.items():
        pages = make(np.random.default_rng(1), arguments.pages, arguments.references)
        regions = np.zeros(len(pages), np.int64)
        options = {"memory": arguments.pages * PAGE, "page_sizes": {0: PAGE}, "standby": arguments.standby}
        results = [simulate(policy, regions, pages, **options) for policy in POLICIES]
        rows.append([name, *(f"{100 * result.misses / result.references:.1f}" for result in results)])
        rows[-1].append(f"{100 * results[-1].refaults / len(pages):.1f}")
    title = f"Misses, in % of {arguments.references:,} references; the memory holds {arguments.pages:,} pages"
    print_table(title, ["pattern", *POLICIES, "auto's faults on standby"], rows)


if __name__ == "__main__":
    main()
