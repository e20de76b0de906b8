"""Tables of fixed size in which policies remember pages, as in policy_key.c, policy_ghost.c, policy_frequency.c."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umappy._simulate.queues import Run

PAGE_BYTES = 4096
WHOLE = 1024
MASK = (1 << 64) - 1

KEYS_MAX = 8
GHOST_WAYS = 16
GHOST_STEPS = 1024
FREQUENCY_WAYS = 32
FREQUENCY_MAX = 15
FREQUENCY_WINDOW = 16
FREQUENCY_ENTRIES_PER_PAGE = 2
FREE = -1


def hash_key(key: int) -> int:
    key = key * 0x9E3779B97F4A7C15 & MASK
    key = (key ^ key >> 32) * 0xD6E8FEB86659FD93 & MASK
    return key ^ key >> 32


def hash_run(run: Run) -> Iterator[int]:
    """The hashes of the pages by which a run is known: eight at most."""
    if run.count == 1:
        yield hash_key(run.key)
        return
    step = 1
    while step * KEYS_MAX < run.count:
        step *= 2
    first = -(-run.page // step) * step
    for page in range(first, run.page + run.count, step):
        yield hash_key(run.key + (page - run.page) * run.key_step)


class Ghosts:
    """Which pages left memory lately."""

    def __init__(self, memory: int, ghost_share: int) -> None:
        self._bucket_count = max(1, memory // PAGE_BYTES // GHOST_WAYS)
        self._unit = max(1, memory // GHOST_STEPS)
        self._reach = GHOST_STEPS * ghost_share // WHOLE
        self._clock = 0
        self._tags: dict[int, list[int]] = {}
        self._stamps: dict[int, list[int]] = {}

    def take(self, run: Run) -> bool:
        """Tells whether the run was a ghost; it is none any more."""
        now = self._clock // self._unit
        looked = found = 0
        for value in hash_run(run):
            looked += 1
            bucket = (value >> 32) * self._bucket_count >> 32
            tags = self._tags.get(bucket)
            tag = value & 0xFFFF | 1
            if tags is not None and tag in tags:
                i = tags.index(tag)
                found += (now - self._stamps[bucket][i]) & 0xFFFF <= self._reach
                tags[i] = 0
        return found * 2 > looked

    def note(self, run: Run) -> None:
        """The run was evicted."""
        now = self._clock // self._unit & 0xFFFF
        for value in hash_run(run):
            bucket = (value >> 32) * self._bucket_count >> 32
            tags = self._tags.setdefault(bucket, [0] * GHOST_WAYS)
            stamps = self._stamps.setdefault(bucket, [0] * GHOST_WAYS)
            if 0 in tags:
                i = tags.index(0)
            else:
                ages = [(now - stamp) & 0xFFFF for stamp in stamps]
                i = ages.index(max(ages))
            tags[i] = value & 0xFFFF | 1
            stamps[i] = now
        self._clock += run.bytes


class Frequencies:
    """How often pages were asked for."""

    def __init__(self, memory: int) -> None:
        count = max(1, memory // PAGE_BYTES * FREQUENCY_ENTRIES_PER_PAGE // FREQUENCY_WAYS)
        self._bucket_count = count
        self._pace = max(1, memory * FREQUENCY_WINDOW // count)
        self._owed = self._hand = 0
        self._tags = [[FREE] * FREQUENCY_WAYS for _ in range(count)]
        self._counts = [[0] * FREQUENCY_WAYS for _ in range(count)]

    def count(self, run: Run, by: int) -> None:
        """The run was asked for, `by` times."""
        for value in hash_run(run):
            bucket = (value >> 32) * self._bucket_count >> 32
            tags, counts, tag = self._tags[bucket], self._counts[bucket], value & 0xFFF
            if tag in tags:
                i = tags.index(tag)
                total = min(counts[i] + by, FREQUENCY_MAX)
            else:
                i = FREQUENCY_WAYS - 1 - counts[::-1].index(min(counts))
                total = by
            del tags[i], counts[i]
            tags.insert(0, tag)
            counts.insert(0, total)
        self._owed += run.bytes
        while self._owed >= self._pace:
            self._owed -= self._pace
            self._halve()

    def look(self, run: Run) -> int:
        """Returns how often the run was asked for: the mean of its pages."""
        looked = total = 0
        for value in hash_run(run):
            bucket = (value >> 32) * self._bucket_count >> 32
            tags, tag = self._tags[bucket], value & 0xFFF
            looked += 1
            if tag in tags:
                total += self._counts[bucket][tags.index(tag)]
        return total // looked if looked else 0

    def _halve(self) -> None:
        counts = [count >> 1 for count in self._counts[self._hand]]
        tags = self._tags[self._hand]
        self._tags[self._hand] = [tag if count else FREE for tag, count in zip(tags, counts, strict=True)]
        self._counts[self._hand] = counts
        self._hand = (self._hand + 1) % self._bucket_count
