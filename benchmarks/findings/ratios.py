"""Contenders against umappy: the ratios of their times for the same work, round by round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from findings.model import Comparison, Entry, Findings, Key, is_ours, is_peer


@dataclass(frozen=True)
class Ratios:
    """How many times as long as `ours` a contender took for the same work; below 1 it is the faster one."""

    ours: Entry
    theirs: Entry
    each: tuple[float, ...]
    """A ratio a round."""

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
    """None where they cannot be compared: something took no time, or they counted different work or rounds."""
    their_work, our_work = theirs.bytes or theirs.items or 1, ours.bytes or ours.items or 1
    is_same = bool(theirs.bytes) == bool(ours.bytes) and len(theirs.seconds) == len(ours.seconds)
    if not is_same or min(*ours.seconds, *theirs.seconds) <= 0:
        return None
    pairs = zip(theirs.seconds, ours.seconds, strict=True)
    # A slow contender may do less of it.
    return Ratios(ours, theirs, tuple((their / their_work) / (our / our_work) for their, our in pairs))


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
