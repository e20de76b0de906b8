"""What a row needs to measure itself: the settings of this run, places to work in, the devices' limits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.device_limits import DeviceLimits
from harness.place import Place
from harness.rounds import Run
from harness.trial import TIMEOUT_SECONDS, Trial

MEMORY_MIN = 8 << 20
OTHER_BYTES = 128 << 20
"""Of a cgroup, for the interpreter, numpy, and the page cache of their files."""


@dataclass(frozen=True)
class Bench:
    """Sizes in bytes. `limit` is the cgroup's, `memory` our budget in it."""

    size: int
    limit: int
    memory: int
    rounds: int
    reads: int
    """Random reads and writes of a contender."""
    places: tuple[Place, ...]
    limits: DeviceLimits

    @property
    def fast(self) -> Place | None:
        """The fast device; None where it was not asked for."""
        return next((place for place in self.places if place.name == "fast"), None)

    def capped_for(self, times: float) -> Bench:
        """Returns the same with a limit of which `size` is `times` as much, besides what an interpreter takes."""
        memory = max(MEMORY_MIN, int(self.size / times) // 4096 * 4096)
        return dataclasses.replace(self, limit=memory + self.limit - self.memory, memory=memory)

    def prepare(
        self,
        function: Callable[..., dict[str, float]],
        place: Place | None = None,
        *,
        expected: dict[str, float] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        **arguments: Any,
    ) -> Run:
        """Returns a contender for `alternate`: `function` in a process of its own."""
        return Trial(function, arguments, self.limit, place, expected, timeout_seconds).run

    def prepare_limits(self, place: Place, memory: int = 0) -> Run:
        """Returns the contender that is the device itself; `memory`: see DeviceLimits."""
        return functools.partial(self.limits.measure, place.numbers(self.size).path, memory)
