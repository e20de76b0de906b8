"""Queues, rules and events of the policies, as in policy.c, policy_s3fifo.c, policy_lfu.c and policy_auto.c.

The same steps in the same order, so that simulator and engine evict the same runs: tests/test_eviction.py compares
them. What each rule is for is told there, in the C files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from umappy._simulate.tables import PAGE_BYTES, WHOLE, Frequencies, Ghosts, hash_key

SMALL, MAIN, AHEAD, TRIAL, STANDBY = range(5)
MOVES = 2
AHEAD_PART, AHEAD_STEPS, AHEAD_AGE = 8, 16, 4
HEAT_MAX, TURNS = 3, 8
LFU_SMALL, LFU_TRIAL, LFU_MAIN = 20, 40, 500
LFU_PROOFS, LFU_RISE = 3, 16
GROUP_SHARES = 32
LFU_WEIGHT, WEIGHT = 7, 8
USUAL_OVER, RUNS_MIN = 16, 32


class Run:
    """Adjacent pages that came together."""

    __slots__ = ("bytes", "count", "group", "heat", "is_ghost", "key", "key_step", "page", "segment",
                 "was_ahead", "was_main")  # fmt: skip

    def __init__(self, key: int, key_step: int, page: int, count: int) -> None:
        self.key = key  # of the first page, in small pages of address
        self.key_step = key_step
        self.page = page
        self.count = count
        self.bytes = count * key_step * PAGE_BYTES
        self.group: Group
        self.segment = MAIN
        self.heat = 0
        self.is_ghost = self.was_ahead = self.was_main = False


class Queue(OrderedDict[Run, None]):
    """Runs, the oldest first, and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0


class Group:
    """A share of the memory, and queues under one set of rules."""

    def __init__(self, rules: Rules, share: int) -> None:
        self.rules = rules
        self.share = share
        self.queues = (Queue(), Queue(), Queue(), Queue(), Queue())
        self.bytes = 0
        self.moved = 0
        self.direct = 0
        self.room = 0

    @property
    def has_resident(self) -> bool:
        return bool(self.queues[SMALL] or self.queues[MAIN])

    @property
    def has_standby(self) -> bool:
        return bool(self.queues[AHEAD] or self.queues[TRIAL] or self.queues[STANDBY])

    def part(self, share: int) -> int:
        return (self.bytes - self.queues[AHEAD].bytes) // WHOLE * share

    def oldest(self, segment: int) -> Run:
        return next(iter(self.queues[segment]))

    def link(self, run: Run, segment: int) -> None:
        run.group, run.segment = self, segment
        queue = self.queues[segment]
        queue[run] = None
        queue.bytes += run.bytes
        self.bytes += run.bytes

    def unlink(self, run: Run) -> None:
        queue = self.queues[run.segment]
        del queue[run]
        queue.bytes -= run.bytes
        self.bytes -= run.bytes

    def move(self, run: Run, segment: int) -> None:
        self.unlink(run)
        self.link(run, segment)


class Rules:
    """How runs go from queue to queue: the plain ones, which alone are first in, first out."""

    newest_first = False

    def __init__(self, policy: PolicyState) -> None:
        self.policy = policy

    def enter(self, group: Group, run: Run, is_ghost: bool) -> int:
        return MAIN

    def again(self, run: Run) -> int:
        return MAIN

    def leave(self, segment: int) -> int:
        return STANDBY

    def choose(self, group: Group) -> int:
        return SMALL if group.queues[SMALL] else MAIN

    def choose_standby(self, group: Group) -> int:
        return TRIAL if group.queues[TRIAL] else STANDBY

    def is_standby_full(self, group: Group) -> bool:
        bytes_waiting = group.queues[TRIAL].bytes + group.queues[STANDBY].bytes
        return bytes_waiting >= group.part(self.policy.shares.standby)


class NewestFirst(Rules):
    newest_first = True


class S3Fifo(Rules):
    def enter(self, group: Group, run: Run, is_ghost: bool) -> int:
        return MAIN if is_ghost else SMALL

    def again(self, run: Run) -> int:
        if run.was_main and run.heat < HEAT_MAX:
            run.heat += 1
        return MAIN

    def choose(self, group: Group) -> int:
        if group.queues[SMALL].bytes > group.part(self.policy.shares.small) or not group.queues[MAIN]:
            return SMALL
        for _ in range(TURNS):
            run = group.oldest(MAIN)
            if not run.heat:
                break
            run.heat -= 1
            group.move(run, MAIN)
        return MAIN


class Lfu(Rules):
    def enter(self, group: Group, run: Run, is_ghost: bool) -> int:
        if self.policy.clock == 0:
            return MAIN
        self._measure_room(group, run.bytes)
        held = group.queues[MAIN].bytes + group.queues[STANDBY].bytes
        return MAIN if held <= group.room else SMALL

    def again(self, run: Run) -> int:
        if run.segment == TRIAL:
            run.heat += 1
            if run.heat < LFU_PROOFS:
                return SMALL
        run.heat = 0
        return MAIN

    def leave(self, segment: int) -> int:
        return STANDBY if segment == MAIN else TRIAL

    def choose(self, group: Group) -> int:
        small, main = group.queues[SMALL], group.queues[MAIN]
        wanted = small and not group.queues[TRIAL] and self.policy.keeps(group.oldest(SMALL))
        segment = SMALL if small.bytes > group.part(LFU_SMALL) or not main or wanted else MAIN
        if small and main and not self.policy.keeps(group.oldest(segment)):
            return self._meet(group, SMALL, MAIN)
        return segment

    def choose_standby(self, group: Group) -> int:
        return self._meet(group, TRIAL, STANDBY)

    def is_standby_full(self, group: Group) -> bool:
        if group.queues[SMALL] and not group.queues[TRIAL]:
            return False
        return group.queues[SMALL].bytes <= group.part(LFU_SMALL) and group.queues[MAIN].bytes <= group.part(LFU_MAIN)

    def _measure_room(self, group: Group, new_bytes: int) -> None:
        rest = LFU_SMALL + (LFU_TRIAL if self.policy.has_standby else 0)
        room = group.part(WHOLE - rest)
        if group.room == 0 or room < group.room:
            group.room = room
        elif new_bytes:
            group.room += (room - group.room) // (LFU_RISE * group.bytes // new_bytes + 1)

    def _meet(self, group: Group, trial: int, held: int) -> int:
        self._measure_room(group, 0)
        if not group.queues[trial] or not group.queues[held]:
            return trial if group.queues[trial] else held
        new, old = group.oldest(trial), group.oldest(held)
        frequencies = self.policy.frequencies
        assert frequencies is not None
        wins = frequencies.look(new) > 2 * frequencies.look(old) + 2
        group.move(new if wins else old, held)
        return held if wins else trial


@dataclass(frozen=True)
class Shares:
    """Parts of the memory, in 1/1024."""

    small: int = 0
    standby: int = 0
    ghosts: int = 0


class PolicyState:
    """A policy at work: the events and the order of victims."""

    def __init__(self, memory: int, shares: Shares, rules: type[Rules], standby_run: int = 0) -> None:
        self.memory = memory
        self.shares = shares
        self.has_standby = shares.standby > 0
        self._standby_run = standby_run
        self.clock = 0
        self.ghosts = Ghosts(memory, shares.ghosts) if rules is S3Fifo else None
        self.frequencies: Frequencies | None = None
        self.groups = [Group(rules(self), GROUP_SHARES)]

    def insert(self, run: Run, is_prefetched: bool) -> None:
        group = self._find_group(run)
        is_ghost = self.ghosts is not None and self.ghosts.take(run)
        if self.frequencies is not None:
            self.frequencies.count(run, 1)
        self._note_miss(group, run)
        run.was_ahead = is_prefetched
        run.is_ghost = is_prefetched and is_ghost
        run.heat = self._ahead_step() if is_prefetched else 0
        if is_prefetched:
            self.groups[0].link(run, AHEAD)
        else:
            group.link(run, group.rules.enter(group, run, is_ghost))

    def refault(self, run: Run) -> None:
        group = run.group
        if run.segment == AHEAD:
            run.heat = 0
            group = self._find_group(run)
            segment = group.rules.enter(group, run, run.is_ghost)
        else:
            if self.frequencies is not None:
                self.frequencies.count(run, 1 if run.was_ahead else 2)
            segment = group.rules.again(run)
        run.is_ghost = run.was_main = False
        run.group.unlink(run)
        group.link(run, segment)

    def move_out(self, run: Run) -> None:
        run.is_ghost = False
        run.was_main = run.segment == MAIN
        run.group.moved += 1
        run.group.move(run, run.group.rules.leave(run.segment))

    def evicted(self, run: Run) -> None:
        run.group.moved = 0
        run.group.direct = run.group.direct + run.bytes if run.segment < AHEAD else 0
        self.clock += run.bytes
        if self.ghosts is not None and run.segment != AHEAD:
            self.ghosts.note(run)
        run.group.unlink(run)

    def keeps(self, run: Run) -> bool:
        """Tells whether a victim waits in standby."""
        return self.has_standby and run.bytes >= self._standby_run

    def is_standby_full(self) -> bool:
        resident, standby = self._fullest(lambda g: g.has_resident), self._fullest(lambda g: g.has_standby)
        if standby is None:
            return False
        if resident is not None and standby.bytes * resident.share < resident.bytes * standby.share:
            standby = resident
        if not standby.has_standby:
            return False
        if not standby.has_resident or self._is_ahead_stale(standby):
            return True
        if not standby.queues[TRIAL] and not standby.queues[STANDBY]:
            return False
        if standby.moved >= MOVES or self._is_turn_of_standby(standby):
            return True
        return not self.has_standby or standby.rules.is_standby_full(standby)

    def next_resident(self) -> Run:
        group = self._fullest(lambda g: g.has_resident)
        assert group is not None
        queue = group.queues[group.rules.choose(group)]
        return next(reversed(queue)) if group.rules.newest_first else next(iter(queue))

    def next_standby(self) -> Run:
        group = self._fullest(lambda g: g.has_standby)
        assert group is not None
        waits = group.queues[TRIAL] or group.queues[STANDBY]
        if not waits or self._is_ahead_stale(group):
            return group.oldest(AHEAD)
        return group.oldest(group.rules.choose_standby(group))

    def _is_turn_of_standby(self, group: Group) -> bool:
        small, main, _, trial, standby = group.queues
        waiting, resident = trial.bytes + standby.bytes, small.bytes + main.bytes
        head = group.oldest(STANDBY if standby else TRIAL)
        pages = PAGE_BYTES
        return bool(group.direct) and (
            group.direct // pages * (waiting // pages) >= resident // pages * (head.bytes // pages)
        )

    def _ahead_step(self) -> int:
        return self.clock // (self.memory // AHEAD_STEPS + 1) & 0xFF

    def _is_ahead_stale(self, group: Group) -> bool:
        ahead = group.queues[AHEAD]
        if not ahead:
            return False
        age = self._ahead_step() - group.oldest(AHEAD).heat & 0xFF
        return ahead.bytes > group.bytes // AHEAD_PART or age >= AHEAD_AGE

    def _find_group(self, run: Run) -> Group:
        return self.groups[0]

    def _note_miss(self, group: Group, run: Run) -> None:
        pass

    def _fullest(self, has: Callable[[Group], bool]) -> Group | None:
        most: Group | None = None
        for group in self.groups:
            if has(group) and (most is None or group.bytes * most.share > most.bytes * group.share):
                most = group
        return most


class AutoState(PolicyState):
    """Contenders that each rule a 32nd, and the rest, which follows who misses least."""

    def __init__(self, memory: int, shares: Shares, standby_run: int = 0) -> None:
        super().__init__(memory, shares, S3Fifo, standby_run)
        self.frequencies = Frequencies(memory)
        contenders = (S3Fifo(self), Lfu(self), Rules(self))
        self._weights = (WEIGHT, LFU_WEIGHT, WEIGHT)
        self._lags = [0, 0, 0]
        self._winner = 1
        self._usual = 0
        leaders = [Group(rules, 1) for rules in contenders]
        self.groups = [Group(contenders[self._winner], GROUP_SHARES - len(leaders)), *leaders]

    def _find_group(self, run: Run) -> Group:
        index = run.page >> (run.count - 1).bit_length()
        base = run.key - run.page * run.key_step
        slot = (index + hash_key(base + index // GROUP_SHARES)) % GROUP_SHARES
        return self.groups[slot + 1 if slot < len(self._lags) else 0]

    def _note_miss(self, group: Group, run: Run) -> None:
        index = self.groups.index(group) - 1
        if index < 0:
            return
        lags = self._lags
        units = run.bytes // PAGE_BYTES
        self._usual += units - self._usual // USUAL_OVER
        held = self.memory // PAGE_BYTES // GROUP_SHARES
        limit = max(held // 2, self._usual * RUNS_MIN // USUAL_OVER) * WEIGHT
        lags[index] += units * self._weights[index]
        least = min(lags)
        best = self._winner
        for i in range(len(lags)):
            lags[i] = min(lags[i] - least, limit)
            if lags[i] < lags[best]:
                best = i
        if lags[self._winner] > limit // 2:
            self._winner = best
            self.groups[0].rules = self.groups[best + 1].rules
