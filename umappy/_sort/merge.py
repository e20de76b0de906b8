"""The second phase: runs are merged by partitions.

A worker gathers a partition's slice of every run in its buffer, sorts it there, and writes it at its known place. That
is faster than a heap, as sorting uses SIMD, and lets all cores work on one merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from umappy._sort.cuts import Cutter, Partition
from umappy._sort.keys import Ordering
from umappy._sort.output import Output
from umappy._sort.plan import Plan
from umappy._sort.progress import SortProgress
from umappy._sort.runs import Run
from umappy._sort.stream import Bytes, ByteStream
from umappy._sort.workers import Workers

Task = tuple[Partition, Run | None]


def merge_runs(
    source: ByteStream,
    target: ByteStream,
    groups: list[list[Run]],
    ordering: Ordering,
    plan: Plan,
    buffers: Sequence[Bytes],
    progress: SortProgress,
    *,
    is_last: bool,
) -> list[Run]:
    """Merges each group of neighbouring runs of `source` to one run of `target`, and returns those.

    In the last pass the new runs are not sampled.
    """
    itemsize = ordering.dtype.itemsize
    output = Output(target, plan.chunk_bytes, progress, is_last)
    workers: Workers[Task] = Workers(buffers, progress.poll)
    merged: list[Run] = []

    def feed() -> Iterator[Task]:
        for group in groups:
            run = None
            if not is_last:
                run = Run.empty(group[0].start, group[-1].stop, plan.sample_step, ordering.key_dtype)
                merged.append(run)
            for partition in Cutter(source, group, ordering, workers.check).cut(plan.run_count):
                source.prefetch_ranges(_to_bytes(partition, itemsize))
                yield partition, run

    def work(task: Task, buffer: Bytes) -> None:
        partition, run = task
        elements, space = buffer[: partition.count * itemsize], buffer[-plan.space_bytes :]
        source.read(_to_bytes(partition, itemsize), elements, workers.check)
        done = ordering.accept_sorted(elements) if partition.is_sorted else ordering.sort(elements)
        if run is not None:
            run.note_samples(partition.place, partition.count, done)
        output.write(partition.place * itemsize, done, space, workers.check)

    workers.run(feed(), work)
    source.check()
    target.check()
    return merged


def _to_bytes(partition: Partition, itemsize: int) -> list[tuple[int, int]]:
    return [(start * itemsize, stop * itemsize) for start, stop in partition.ranges]
