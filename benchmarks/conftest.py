"""The collected benchmarks: `make bench`, `make bench-full`, or a part of them, such as

    .venv/bin/pytest benchmarks/bench_sequential.py --scale quick -o faulthandler_timeout=0 -W default

How each is measured: harness/contest.py.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.bench import OTHER_BYTES, Bench
from harness.cap import find_kind
from harness.contest import CLOCK, Contest, Ledger
from harness.device_limits import build_device_limits
from harness.fast_device import open_fast_device
from harness.place import Place
from harness.report import describe_machine

PEERS = ("numpy", "blosc2", "zarr", "h5py", "hdf5plugin", "duckdb", "polars", "zstandard")
LEDGER = pytest.StashKey[Ledger]()
SETTINGS = pytest.StashKey[dict[str, Any]]()


@dataclass(frozen=True)
class Scale:
    """How much is measured. Sizes in bytes; `steps` picks how many points of an axis are measured."""

    name: str
    size: int
    limit: int
    rounds: int
    reads: int
    fast_bytes: int
    """Of the fast device, for all files that lie on it at a time."""
    devices: tuple[str, ...]
    limit_seconds: float
    steps: int


SCALES = {
    "tiny": Scale("tiny", 32 << 20, 160 << 20, 1, 500, 1 << 30, ("fast",), 0.05, 2),
    "quick": Scale("quick", 512 << 20, 224 << 20, 3, 4_000, 5 << 30, ("fast",), 0.1, 3),
    "full": Scale("full", 2 << 30, 512 << 20, 3, 20_000, 11 << 30, ("fast", "disk"), 0.3, 9),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("umappy")
    group.addoption("--scale", choices=SCALES, default="quick", help="how much to measure (default: %(default)s)")
    group.addoption("--devices", help="where: fast, disk or both, with a comma (default: the scale's)")
    group.addoption("--rounds", type=int, help="of each comparison (default: the scale's)")
    group.addoption("--dir", help="folder on the machine's disk (default: $UMAPPY_BENCH_DIR, else this project's)")


def get_scale(config: pytest.Config) -> Scale:
    return SCALES[config.getoption("--scale")]


def pick_steps(scale: Scale, points: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns some of the points of an axis, both ends among them; all where the scale has as many."""
    if len(points) <= scale.steps:
        return points
    last = len(points) - 1
    return tuple(points[round(i * last / (scale.steps - 1))] for i in range(scale.steps))


def find_devices(config: pytest.Config) -> tuple[str, ...]:
    asked = config.getoption("--devices")
    names = tuple(asked.split(",")) if asked else get_scale(config).devices
    if unknown := set(names) - {"fast", "disk"}:
        raise pytest.UsageError(f"--devices: no {', '.join(sorted(unknown))}; there are fast, disk")
    if os.geteuid() != 0 and "fast" in names:
        print("no fast device: a loop device takes root; the machine's disk serves instead", file=sys.stderr)
        names = ("disk",)
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device`: each that is measured; an axis is a marker, `axis("fillers", (1, 2))`, of which a scale takes some."""
    if "device" in metafunc.fixturenames:
        only = [name for marker in metafunc.definition.iter_markers("device") for name in marker.args]
        names = find_devices(metafunc.config)
        metafunc.parametrize("device", [name for name in names if name in only] or names[:1] if only else names)
    for marker in metafunc.definition.iter_markers("axis"):
        name, points = marker.args
        metafunc.parametrize(name, pick_steps(get_scale(metafunc.config), tuple(points)))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "axis(name, points): what varies from comparison to comparison")
    config.addinivalue_line("markers", "device(name, ...): the devices it is measured on, where there are they")
    config.stash[LEDGER] = Ledger()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK.read, warmup=False))


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Sizes, places and the devices' limits; what is laid on the places goes away with it."""
    config = request.config
    scale = get_scale(config)
    with contextlib.ExitStack() as stack:
        limits = stack.enter_context(build_device_limits(scale.limit_seconds))
        places = []
        for name in find_devices(config):
            if name == "fast":
                folder = stack.enter_context(open_fast_device(scale.fast_bytes))
            else:
                parent = config.getoption("--dir") or os.environ.get("UMAPPY_BENCH_DIR") or Path(__file__).parents[1]
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".bench-", dir=parent))
            places.append(Place(name, folder))
        rounds = config.getoption("--rounds") or scale.rounds
        memory = scale.limit - OTHER_BYTES
        described = {place.name: place.describe() for place in places}
        config.stash[SETTINGS] = {"scale": asdict(scale), "rounds": rounds, "places": described}
        yield Bench(scale.size, scale.limit, memory, rounds, scale.reads, tuple(places), limits)


@pytest.fixture
def place(bench: Bench, device: str) -> Place:
    """Where the files of this test lie."""
    return next(place for place in bench.places if place.name == device)


@pytest.fixture
def contest(request: pytest.FixtureRequest, bench: Bench, benchmark: BenchmarkFixture) -> Contest:
    parameters = {name: value for name, value in request.node.callspec.params.items() if name != "contender"}
    comparison = f"{request.node.parent.nodeid}::{request.node.originalname}{sorted(parameters.items())}"
    return Contest(bench, request.config.stash[LEDGER], benchmark, comparison)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    versions = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    machine_info["umappy"] = describe_machine() | {"versions": versions, "cap": find_kind()}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["umappy"] = config.stash.get(SETTINGS, {}) | {"problems": config.stash[LEDGER].problems}
