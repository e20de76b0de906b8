"""Eviction: which pages leave memory next, and how much memory is kept free.

A policy is named by a string ("auto") or given as one of the classes below with its parameters. `simulate` runs one
over a trace of faults (`Pager(trace=...)`, `umappy.trace.read_trace`), so that a policy, or a budget, can be chosen
from data.

The pager sees misses only; a touch of a page in memory is seen by nobody. So victims are first moved to *standby*:
out of the mapping, but their bytes still there. A touch of a page in standby costs microseconds and proves a hit.
Where the kernel cannot move pages (`UFFDIO_MOVE`, Linux 6.8) there is no standby, and policies learn from ghosts
alone: pages that are missed again soon after they left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from umappy._simulate import queues
from umappy._simulate.pager import IdealPager
from umappy.sizes import format_size

WHOLE = 1024
"""Shares are given to the engine in parts of this."""


@dataclass(frozen=True)
class Policy:
    """What the policies have in common; make one of those below."""

    name: ClassVar[str]
    kind: ClassVar[int]
    """The engine's number for it, UM_POLICY_... in policy.h."""

    def __post_init__(self) -> None:
        shares = self.shares()
        if min(shares.small, shares.standby, shares.ghosts) < 0 or shares.small + shares.standby >= WHOLE:
            raise ValueError(f"{self!r}: wants shares of at least 0, and for small and standby together less than 1")
        if shares.ghosts > 16 * WHOLE:
            raise ValueError(f"{self!r}: wants ghosts of at most 16 times the memory")

    def shares(self) -> queues.Shares:
        return queues.Shares(*(round(getattr(self, name, 0.0) * WHOLE) for name in ("small", "standby", "ghosts")))

    def start(self, memory: int, *, standby: bool = True, standby_run: int = 0) -> queues.PolicyState:
        """Returns the policy at work in the simulator; `standby=False`: as on a kernel that cannot move pages;
        runs of less than `standby_run` bytes cannot be moved either."""
        shares = self.shares()
        if not standby:
            shares = queues.Shares(shares.small, 0, shares.ghosts)
        return self._start(memory, shares, standby_run)

    def _start(self, memory: int, shares: queues.Shares, standby_run: int) -> queues.PolicyState:
        return queues.PolicyState(memory, shares, queues.Rules, standby_run)


@dataclass(frozen=True)
class Fifo(Policy):
    """What came first leaves first. Nothing is learned, and no page is ever faulted on twice for it."""

    name: ClassVar[str] = "fifo"
    kind: ClassVar[int] = 1


@dataclass(frozen=True)
class SecondChance(Policy):
    """First in, first out, but what is touched in standby goes to the young end.

    Turner and Levy, "Segmented FIFO page replacement", SIGMETRICS 1981.
    """

    name: ClassVar[str] = "second_chance"
    kind: ClassVar[int] = 2
    standby: float = 0.25
    """Share of the memory for victims in standby."""


@dataclass(frozen=True)
class S3Fifo(Policy):
    """A small queue for what is new, a main one for what was used again, and ghosts.

    Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023; with touches in
    standby and ghosts in place of its counters, as touches of pages in memory are not seen.
    """

    name: ClassVar[str] = "s3fifo"
    kind: ClassVar[int] = 3
    small: float = 0.1
    """Share of the memory for pages that proved no second use."""
    standby: float = 0.1875
    ghosts: float = 1.0
    """Evictions that are remembered, as a multiple of the memory."""

    def _start(self, memory: int, shares: queues.Shares, standby_run: int) -> queues.PolicyState:
        return queues.PolicyState(memory, shares, queues.S3Fifo, standby_run)


@dataclass(frozen=True)
class Mru(Policy):
    """What came last leaves first: for scans that come round again over more than fits, and for nothing else.

    Chou and DeWitt, "An evaluation of buffer management strategies for relational database systems", VLDB 1985.
    """

    name: ClassVar[str] = "mru"
    kind: ClassVar[int] = 4

    def _start(self, memory: int, shares: queues.Shares, standby_run: int) -> queues.PolicyState:
        return queues.PolicyState(memory, shares, queues.NewestFirst, standby_run)


@dataclass(frozen=True)
class Auto(Policy):
    """Whichever of three has the fewest misses: s3fifo, lfu (what is asked for most often stays), second_chance.

    Each rules a 32nd of the pages, in a 32nd of the memory, for good; the others follow who misses least there. In a
    loop over more than fits lfu holds on to what it has, and wins. Qureshi, Jaleel, Patt, Steely and Emer, "Adaptive
    insertion policies for high performance caching", ISCA 2007; the frequencies are those of Einziger, Friedman and
    Manes, "TinyLFU", ACM Transactions on Storage 2017.
    """

    name: ClassVar[str] = "auto"
    kind: ClassVar[int] = 0
    small: float = 0.1
    """As in S3Fifo, and so the other two, for the contenders that have them."""
    standby: float = 0.1875
    ghosts: float = 1.0

    def _start(self, memory: int, shares: queues.Shares, standby_run: int) -> queues.PolicyState:
        return queues.AutoState(memory, shares, standby_run)


POLICIES: Mapping[str, type[Policy]] = {kind.name: kind for kind in (Fifo, SecondChance, S3Fifo, Mru, Auto)}


def read_policy(value: object, name: str = "policy") -> Policy:
    """Returns the policy that `value` means: one of POLICIES' names, or a Policy."""
    if isinstance(value, str) and value.strip().lower() in POLICIES:
        return POLICIES[value.strip().lower()]()
    if isinstance(value, Policy) and type(value) in POLICIES.values():
        return value
    names = ", ".join(map(repr, POLICIES))
    kind: type[Exception] = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name} is {value!r}: wants one of {names}, or a policy of umappy.eviction")


@dataclass(frozen=True)
class WaterMarks:
    """Free memory, in bytes, below which eviction starts, and at which it stops."""

    low: int
    high: int

    @classmethod
    def choose(cls, memory: int, low: int | None = None, high: int | None = None) -> WaterMarks:
        """Of marks not given, low is 1/32 of the budget and high 1/16, or the other mark where that lies beyond.

        ValueError when low is above high, or either above half of the budget.
        """
        start = min(memory // 32, high or memory) if low is None else low
        stop = max(memory // 16, start) if high is None else high
        for name, mark in (("low_water", start), ("high_water", stop)):
            if mark > memory // 2:
                raise ValueError(
                    f"{name} is {format_size(mark)}: wants at most half of the budget of {format_size(memory)}"
                )
        if start > stop:
            raise ValueError(f"low_water is {format_size(start)}: wants at most high_water, {format_size(stop)}")
        return cls(start, stop)


@dataclass(frozen=True)
class Simulation:
    """What a policy made of a trace; counts pages."""

    references: int
    misses: int
    refaults: int
    """Touches of pages in standby: hits that cost a fault."""

    @property
    def hit_ratio(self) -> float:
        """Of all references, those that needed no store; 0.0 where there are none."""
        return 1 - self.misses / self.references if self.references else 0.0


def simulate(
    policy: Policy | str,
    regions: NDArray[np.integer],
    pages: NDArray[np.integer],
    *,
    memory: int,
    page_sizes: Mapping[int, int],
    standby: bool = True,
) -> Simulation:
    """Runs references, a region and a page each, through a policy with `memory` bytes for pages.

    An ideal pager: one thread, no time passes, no read-ahead, every byte of the memory holds pages. The steps are
    those of the engine, in Python: some hundred thousand misses a second at best. ValueError when the memory holds no
    page of the largest region.
    """
    if memory < max(page_sizes.values(), default=0):
        raise ValueError(f"memory is {format_size(memory)}: wants to hold at least one page")
    state = read_policy(policy).start(memory, standby=standby)
    pager = IdealPager(state, memory, page_sizes)
    pager.touch_all(zip(cast("list[int]", regions.tolist()), cast("list[int]", pages.tolist()), strict=True))
    return Simulation(len(pages), pager.misses, pager.refaults)
