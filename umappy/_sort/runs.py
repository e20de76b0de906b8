"""The first phase: runs, sorted stretches as long as a buffer, written to scratch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umappy._sort.keys import Ordering, SortedElements
from umappy._sort.output import Output
from umappy._sort.plan import Plan
from umappy._sort.progress import SortProgress
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


def make_runs(
    source: ByteStream,
    target: ByteStream,
    count: int,
    ordering: Ordering,
    plan: Plan,
    buffers: Sequence[Bytes],
    progress: SortProgress,
    *,
    is_last: bool,
) -> list[Run]:
    """Sorts `count` elements of `source` in runs into `target`, and returns the runs.

    `is_last`: `target` is the output, since one run holds everything.
    """
    itemsize = ordering.dtype.itemsize
    output = Output(target, plan.chunk_bytes, progress, is_last)
    workers: Workers[Run] = Workers(buffers, progress.poll)
    # Runs of about equal length: a short last one would leave a thread idle.
    number = -(-count // plan.run_count)
    edges = [count * index // number for index in range(number + 1)]
    runs = [Run.empty(start, stop, plan.sample_step, ordering.key_dtype) for start, stop in itertools.pairwise(edges)]

    def feed() -> Iterator[Run]:
        for run in runs:
            source.prefetch_ranges([(run.start * itemsize, run.stop * itemsize)])
            yield run

    def work(run: Run, buffer: Bytes) -> None:
        size = (run.stop - run.start) * itemsize
        elements, space = buffer[:size], buffer[-plan.space_bytes :]
        source.read([(run.start * itemsize, run.stop * itemsize)], elements, workers.check)
        done = ordering.sort(elements)
        run.note_samples(run.start, run.stop - run.start, done)
        output.write(run.start * itemsize, done, space, workers.check)

    workers.run(feed(), work)
    source.check()
    target.check()
    return runs
