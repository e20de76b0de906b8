"""Contenders against umappy: the ratios of their times, round by round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from findings.model import Comparison, Entry, Findings, Key, is_ours, is_peer


@dataclass(frozen=True)
class Ratios:
    """How many times as long as `ours` a contender took, a ratio for each round; below 1 it is the faster one."""

    ours: Entry
    theirs: Entry
    each: tuple[float, ...]

    @property
    def key(self) -> Key:
        return self.ours.key

    @property
    def median(self) -> float:
        return statistics.median(self.each)

    @property
    def least(self) -> float:
        return min(self.each)

    @property
    def most(self) -> float:
        return max(self.each)


def divide(theirs: Entry, ours: Entry) -> Ratios | None:
    """None where they cannot be compared: something took no time, or they did not run in the same rounds."""
    if len(theirs.seconds) != len(ours.seconds) or min(*ours.seconds, *theirs.seconds) <= 0:
        return None
    each = tuple(their / our for their, our in zip(theirs.seconds, ours.seconds, strict=True))
    return Ratios(ours, theirs, each)


def compare_to_ours(comparison: Comparison) -> dict[str, Ratios]:
    """Returns the ratios to umappy by contender, of all who have them."""
    ours = comparison.ours
    if ours is None:
        return {}
    found = {entry.contender: divide(entry, ours) for entry in comparison.entries if entry is not ours}
    return {contender: ratios for contender, ratios in found.items() if ratios is not None}


def find_fastest_peer(comparison: Comparison) -> Ratios | None:
    peers = [ratios for contender, ratios in compare_to_ours(comparison).items() if is_peer(contender)]
    return min(peers, key=lambda ratios: (ratios.median, ratios.theirs.contender), default=None)


def find_losses(findings: Findings) -> list[Ratios]:
    """Returns every contender that is faster than umappy, the fastest first: peers, and ceilings, too."""
    losses = [
        ratios
        for comparison in findings.comparisons
        for contender, ratios in compare_to_ours(comparison).items()
        if ratios.median < 1 and not is_ours(contender)
    ]
    return sorted(losses, key=lambda ratios: (ratios.median, ratios.key.subject, ratios.theirs.contender))
