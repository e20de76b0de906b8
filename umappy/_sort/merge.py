"""The second phase: runs are merged by partitions.

A worker gathers a partition's slice of every run in its buffer, sorts it there, and writes it at its known place. That
is faster than a heap, as sorting goes by digits in the processor's cache, and lets all cores work on one merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from umappy._sort.cuts import Cutter, Partition
from umappy._sort.output import Output
from umappy._sort.runs import Run
from umappy._sort.setup import Setup
from umappy._sort.stream import Bytes, ByteStream
from umappy._sort.workers import Workers

Task = tuple[Partition, Run]  # a partition and the run it becomes part of


def merge_runs(
    setup: Setup, source: ByteStream, target: ByteStream, groups: Sequence[Sequence[Run]], *, is_last: bool
) -> list[Run]:
    """Merges each group of neighbouring runs of `source` to one run of `target`, and returns those.

    `is_last`: `target` is the output.
    """
    workers: Workers[Task] = Workers(setup.buffers, setup.progress.poll)
    step, key_dtype = setup.plan.sample_step, setup.ordering.key_dtype
    merged = [Run.empty(group[0].start, group[-1].stop, step, key_dtype) for group in groups]
    merger = _Merger(setup, source, setup.make_output(target, is_result=is_last), workers.check)
    workers.run(merger.feed(zip(groups, merged, strict=True)), merger.work)
    source.check()
    target.check()
    return merged


@dataclass(frozen=True)
class _Merger:
    # Methods, not closures, as in runs.py.
    setup: Setup
    source: ByteStream
    output: Output
    check: Callable[[], None]

    def feed(self, groups: Iterable[tuple[Sequence[Run], Run]]) -> Iterator[Task]:
        for group, run in groups:
            for partition in Cutter(self.source, group, self.setup.ordering, self.check).cut(self.setup.plan.run_count):
                yield partition, run

    def work(self, task: Task, buffer: Bytes) -> None:
        partition, run = task
        ordering, is_result = self.setup.ordering, self.output.is_result
        may_spread = is_result and ordering.merges_parts
        elements, parts = self.setup.gather(self.source, partition.ranges, buffer, self.check, may_spread=may_spread)
        space = self.setup.find_space(buffer)
        if partition.is_sorted:
            done = ordering.accept_sorted(elements)
        elif is_result:
            done = ordering.merge(elements, parts, self.setup.plan.block_bytes, space)
        else:
            done = ordering.sort(elements, space)
        if not is_result:
            run.note_samples(partition.place, partition.count, done)
        self.output.write(partition.place * self.setup.itemsize, done, space, self.check)
