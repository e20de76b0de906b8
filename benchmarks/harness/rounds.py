"""Contenders that take turns, so that a machine that slows down or speeds up does so for all of them."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.errors import ContenderError
from harness.sample import Sample

Run = Callable[[], Sample]
Figure = Callable[[Sample], float]


@dataclass(frozen=True)
class Rounds:
    """Samples by contender, one a round; `problems` holds those that gave up, with why."""

    samples: dict[str, list[Sample]]
    problems: dict[str, ContenderError]

    def find_problem(self, *names: str) -> ContenderError | None:
        """Returns why there is no comparing these contenders; None: there is."""
        return next((self.problems[name] for name in names if name in self.problems), None)

    def collect(self, name: str, figure: Figure) -> list[float]:
        """Returns a figure of each round."""
        return [figure(sample) for sample in self.samples[name]]

    def median(self, name: str, figure: Figure) -> float:
        return statistics.median(self.collect(name, figure))


def alternate(contenders: Mapping[str, Run], count: int) -> Rounds:
    """Runs each contender once a round; each round begins with the next one. Who fails once is left out."""
    names = list(contenders)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    problems: dict[str, ContenderError] = {}
    for number in range(count):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name in problems:
                continue
            started = time.monotonic()
            try:
                sample = contenders[name]()
            except ContenderError as problem:
                problems[name] = problem
                _say(f"  {name}: FAILED: {problem}")
                continue
            samples[name].append(sample)
            took = f"{sample.seconds:.3f} s" if sample.seconds else "measured"
            _say(f"  {name}: {took} (of {time.monotonic() - started:.1f} s, load {os.getloadavg()[0]:.1f})")
    return Rounds(samples, problems)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
