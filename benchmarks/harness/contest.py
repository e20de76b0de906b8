"""A comparison of collected benchmarks: contenders that take turns, each a test of its own.

pytest-benchmark runs one test after another and times what runs in its own process. Here the first test of a
comparison runs all its contenders, in turns, each in a process of its own under the memory limit; then each test plays
back its own samples on a clock that nothing else advances. So its tables, its JSON and its options are those of what
was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.bench import Bench
from harness.place import Place
from harness.rounds import Rounds, Run, alternate
from harness.sample import Sample

OURS = "umappy"

Axis = Mapping[str, float | str]


@dataclass
class Clock:
    """What pytest-benchmark reads instead of the time."""

    now: float = 0.0

    def read(self) -> float:
        return self.now


CLOCK = Clock()


@dataclass
class Ledger:
    """The comparisons of a session: those that ran, and who gave up in them."""

    rounds: dict[str, Rounds] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Contest:
    """The fixture `contest`: one test's part in a comparison."""

    bench: Bench
    ledger: Ledger
    benchmark: BenchmarkFixture
    comparison: str
    """The test and its parameters but the contender; those that have it in common are compared."""

    def run(
        self,
        subject: str,
        contender: str,
        prepare: Callable[[], Mapping[str, Run]],
        *,
        place: Place | None = None,
        axis: Axis | None = None,
        nbytes: int | None = None,
        items: int | None = None,
        limit: int | None = None,
        rounds: int | None = None,
        seconds: Callable[[Sample], float] | None = None,
        note: str | None = None,
    ) -> None:
        """Reports `contender` of the comparison that `prepare` returns: a Run by name; the first test of it runs it.

        `subject` is what tables call it, and `axis` what varies from comparison to comparison of it, such as
        {"oversubscription": 4}. One round works on `nbytes` bytes or `items` items: what rates are made of. `limit`: of
        its cgroup, where not the session's. `seconds`: where it is not the metered time that counts. A contender that
        gives up is skipped with its reason, which the reports tell; umappy fails.
        """
        if self.comparison not in self.ledger.rounds:
            self.ledger.rounds[self.comparison] = alternate(prepare(), rounds or self.bench.rounds)
        done = self.ledger.rounds[self.comparison]
        what = {
            "subject": subject,
            "contender": contender,
            "device": place.name if place else None,
            "axis": dict(axis or {}),
            "note": note,
        }
        if contender in done.problems:
            reason = str(done.problems[contender])
            self.ledger.problems.append(what | {"reason": reason})
            if contender.startswith(OURS):
                pytest.fail(f"{subject}: {reason}")
            pytest.skip(f"{contender}: {reason}")
        samples = done.samples[contender]
        self.benchmark.group = ", ".join([subject, *(f"{name} {value}" for name, value in (axis or {}).items())])
        self.benchmark.extra_info |= what | {
            "bytes": nbytes,
            "items": items,
            "limit": limit or self.bench.limit,
            **describe_samples(samples),
        }
        took = iter([(seconds or get_seconds)(sample) for sample in samples])
        self.benchmark.pedantic(_advance, args=(took,), rounds=len(samples), iterations=1)


def get_seconds(sample: Sample) -> float:
    return sample.seconds


def describe_samples(samples: list[Sample]) -> dict[str, Any]:
    """Returns what the samples tell besides time, a list with one for each round."""
    names = {name for sample in samples for name in sample.values}
    return {
        "cap": samples[0].cap,
        "cpu_seconds": [sample.cpu_seconds for sample in samples],
        "peak_bytes": [sample.cgroup_peak_bytes for sample in samples],
        "device_bytes_read": [sample.device_bytes_read for sample in samples],
        "device_bytes_written": [sample.device_bytes_written for sample in samples],
        "values": {name: [sample.values.get(name) for sample in samples] for name in sorted(names)},
    }


def _advance(took: Iterator[float]) -> None:
    CLOCK.now += next(took)
