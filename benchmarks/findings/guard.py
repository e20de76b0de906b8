"""Whether umappy became slower, told by the ratios to its peers in the same run: machines may differ, and be noisy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from findings.model import Findings, Key, is_ours, is_peer
from findings.ratios import Ratios, divide
from findings.read import FindingsError
from findings.tables import Table, describe_comparison
from findings.units import format_ratio, format_spread

TOLERANCE = 0.25
HEADER = ("comparison", "against", "before", "spread", "now", "spread", "slower by")

Pair = tuple[Key, str, str]
"""A comparison, umappy or a way of it, and a peer."""


@dataclass(frozen=True)
class Change:
    """A pair in both runs."""

    pair: Pair
    before: Ratios
    now: Ratios

    @property
    def slower_by(self) -> float:
        """How many times as long umappy takes now, with the peer as the clock."""
        return self.before.median / self.now.median

    @property
    def is_sure(self) -> bool:
        """Whether both runs have rounds to tell noise by."""
        return min(len(self.before.each), len(self.now.each)) > 1

    def is_worse(self, tolerance: float) -> bool:
        """Beyond the tolerance, and beyond the spreads: the best round now is worse than the worst one before."""
        return self.slower_by > 1 + tolerance and self.now.most < self.before.least


@dataclass(frozen=True)
class Verdict:
    changes: tuple[Change, ...]
    worse: tuple[Change, ...]
    """Of the changes, the worst first."""
    unsure: tuple[Change, ...]
    """Of the changes, those that look worse by their only round."""
    missing: tuple[Pair, ...]
    """In the base only."""


def judge(base: Findings, now: Findings, tolerance: float = TOLERANCE) -> Verdict:
    """FindingsError where the runs measured different amounts, or have no pair in common."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise FindingsError(f"tolerance is {tolerance}: wants a part such as 0.25, at least 0")
    if base.scale.get("name") != now.scale.get("name"):
        raise FindingsError(
            f"the base is of scale {base.scale.get('name')} and the other of scale {now.scale.get('name')}: "
            "ratios of different sizes do not compare; run both at one --scale"
        )
    old, new = _collect(base), _collect(now)
    changes = tuple(Change(pair, ratios, new[pair]) for pair, ratios in old.items() if pair in new)
    if not changes:
        raise FindingsError("the two runs have no comparison in common: run the same bench files for both")
    worse = sorted((each for each in changes if each.is_worse(tolerance)), key=lambda each: -each.slower_by)
    return Verdict(
        changes,
        tuple(change for change in worse if change.is_sure),
        tuple(change for change in worse if not change.is_sure),
        tuple(pair for pair in old if pair not in new),
    )


def _collect(findings: Findings) -> Mapping[Pair, Ratios]:
    """Against ceilings only where there is no peer: what is not of the same kind is a poor clock."""
    pairs = {}
    for comparison in findings.comparisons:
        has_peers = any(is_peer(entry.contender) for entry in comparison.entries)
        others = [entry for entry in comparison.entries if not is_ours(entry.contender)]
        clocks = [entry for entry in others if is_peer(entry.contender) or not has_peers]
        for ours in comparison.entries:
            for theirs in clocks if is_ours(ours.contender) else ():
                if ratios := divide(theirs, ours):
                    pairs[comparison.key, ours.contender, theirs.contender] = ratios
    return pairs


def describe_pair(pair: Pair) -> tuple[str, str]:
    """Returns the comparison, and who against whom."""
    key, ours, theirs = pair
    return ", ".join([describe_comparison(key), *([key.device] if key.device else [])]), f"{theirs} / {ours}"


def make_change_table(changes: tuple[Change, ...]) -> Table:
    """Ratios are the peer's time over umappy's: those that fell are of a slower umappy."""
    rows = [
        (
            *describe_pair(change.pair),
            format_ratio(change.before.median),
            format_spread(change.before.least, change.before.most),
            format_ratio(change.now.median),
            format_spread(change.now.least, change.now.most),
            format_ratio(change.slower_by),
        )
        for change in changes
    ]
    return Table("slower than before, against the same peers", HEADER, tuple(rows))
