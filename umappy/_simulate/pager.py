"""An idealised pager: one thread, no time passes, memory that is full or not; as in tests/engine/replay.c."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from umappy._simulate.queues import AHEAD, PolicyState, Run
from umappy._simulate.tables import MASK, PAGE_BYTES

ADDRESS_SHIFT = 42  # regions lie so far apart


class IdealPager:
    """Runs references through a policy and counts."""

    def __init__(self, policy: PolicyState, memory: int, page_sizes: Mapping[int, int]) -> None:
        self._policy = policy
        self._memory = memory
        self._steps = {region: size // PAGE_BYTES for region, size in page_sizes.items()}
        self._owner: dict[int, Run] = {}
        self._used = 0
        self.misses = self.refaults = self.prefetched = self.digest = 0

    @property
    def used(self) -> int:
        """Bytes in runs, resident and standby."""
        return self._used

    def touch(self, region: int, page: int) -> None:
        """A reference that brings in one page when it is absent."""
        run = self._owner.get((region + 1 << ADDRESS_SHIFT - 12) + page * self._steps[region])
        if run is None:
            self.misses += 1
            self._fill(region, page, 1, is_prefetched=False)
        elif run.segment >= AHEAD:
            self.refaults += 1
            self._policy.refault(run)

    def touch_run(self, region: int, page: int, count: int, end: int, *, is_prefetched: bool = False) -> None:
        """A reference to `page`; when it is absent, the absent pages from it on come in, up to `count` and `end`."""
        step = self._steps[region]
        key = (region + 1 << ADDRESS_SHIFT - 12) + page * step
        if key in self._owner:
            if not is_prefetched:
                self.touch(region, page)
            return
        absent = 1
        while absent < count and page + absent < end and key + absent * step not in self._owner:
            absent += 1
        if is_prefetched:
            self.prefetched += absent
        else:
            self.misses += absent
        self._fill(region, page, absent, is_prefetched=is_prefetched)

    def touch_all(self, pages: Iterable[tuple[int, int]]) -> None:
        """References to (region, page), one after the other."""
        for region, page in pages:
            self.touch(region, page)

    def _fill(self, region: int, page: int, count: int, *, is_prefetched: bool) -> None:
        step = self._steps[region]
        run = Run((region + 1 << ADDRESS_SHIFT - 12) + page * step, step, page, count)
        self._make_room(run.bytes)
        for i in range(count):
            self._owner[run.key + i * step] = run
        self._used += run.bytes
        self._policy.insert(run, is_prefetched)

    def _make_room(self, wanted: int) -> None:
        policy = self._policy
        while self._used + wanted > self._memory:
            if policy.is_standby_full():
                self._give_up(policy.next_standby())
                continue
            victim = policy.next_resident()
            if policy.keeps(victim):
                policy.move_out(victim)
            else:
                self._give_up(victim)

    def _give_up(self, run: Run) -> None:
        for i in range(run.count):
            del self._owner[run.key + i * run.key_step]
        self._used -= run.bytes
        region = (run.key >> ADDRESS_SHIFT - 12) - 1
        self.digest = (self.digest ^ (region << 48 ^ run.page)) * 0x100000001B3 & MASK
        self._policy.evicted(run)
