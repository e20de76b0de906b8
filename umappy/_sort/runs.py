"""The first phase: runs, sorted stretches as long as a buffer, written to scratch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umappy._sort.keys import SortedElements
from umappy._sort.output import Output
from umappy._sort.setup import Setup
from umappy._sort.stream import Bytes, ByteStream
from umappy._sort.workers import Workers


@dataclass(frozen=True)
class Run:
    """A sorted stretch of a stream, in elements, and the keys of each `step`-th of them from the first on."""

    start: int
    stop: int
    step: int
    samples: NDArray[Any]

    @classmethod
    def empty(cls, start: int, stop: int, step: int, key_dtype: np.dtype[Any]) -> Run:
        """A run about to be written: its samples are filled in as its elements come."""
        return cls(start, stop, step, np.zeros(-(-(stop - start) // step), key_dtype))

    def note_samples(self, place: int, count: int, elements: SortedElements) -> None:
        """Takes the samples among `count` elements that begin at element `place` of the stream."""
        first = -(-(place - self.start) // self.step)
        last = -(-(place - self.start + count) // self.step)
        if last > first:
            self.samples[first:last] = elements.keys_at(first * self.step - (place - self.start), self.step)


def make_runs(setup: Setup, source: ByteStream, target: ByteStream, count: int, *, is_last: bool) -> list[Run]:
    """Sorts `count` elements of `source` in runs into `target`, and returns the runs.

    `is_last`: `target` is the output, since one run holds everything.
    """
    # Runs of about equal length: a short last one would leave a thread idle.
    unit = setup.plan.edge_step
    number = setup.plan.count_runs(count)
    edges = [*(count * index // number // unit * unit for index in range(number)), count]
    step, key_dtype = setup.plan.sample_step, setup.ordering.key_dtype
    runs = [Run.empty(start, stop, step, key_dtype) for start, stop in itertools.pairwise(edges)]
    workers: Workers[Run] = Workers(setup.buffers, setup.progress.poll)
    maker = _RunMaker(setup, source, setup.make_output(target, is_result=is_last), workers.check)
    workers.run(maker.feed(runs), maker.work)
    source.check()
    target.check()
    return runs


@dataclass(frozen=True)
class _RunMaker:
    # Methods, not closures: a failed frame can be made to let go of its variables, but not of its function's.
    setup: Setup
    source: ByteStream
    output: Output
    check: Callable[[], None]

    def feed(self, runs: Iterable[Run]) -> Iterator[Run]:
        yield from runs

    def work(self, run: Run, buffer: Bytes) -> None:
        elements, _ = self.setup.gather(self.source, [(run.start, run.stop)], buffer, self.check)
        space = self.setup.find_space(buffer)
        done = self.setup.ordering.sort(elements, space)
        run.note_samples(run.start, run.stop - run.start, done)
        self.output.write(run.start * self.setup.itemsize, done, space, self.check)
