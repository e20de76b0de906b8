"""The few comparisons that a newcomer wants to see: umappy against the fastest of the peers, won or lost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from findings.costs import describe_rate
from findings.model import Comparison, Findings
from findings.ratios import find_fastest_peer
from findings.tables import Table, describe_comparison
from findings.units import format_ratio, format_spread

HEADER = ("", "umappy", "fastest peer", "peer's time / umappy's", "spread")
NOTE_LENGTH = 30
VARIED = r"threads|fillers|page size|region|growth|address space"
COMPRESSED = r"zstd|compress"
NETWORK = r"network|nbd"
STORES = f"{COMPRESSED}|{NETWORK}"


@dataclass(frozen=True)
class Headline:
    """A row: the comparison whose subject or axis matches `pattern`, and not `without`."""

    pattern: str
    without: str

    def matches(self, comparison: Comparison) -> bool:
        text = describe_comparison(comparison.key)
        return bool(
            re.search(self.pattern, text, re.IGNORECASE)
            and not re.search(f"{VARIED}|{self.without}", text, re.IGNORECASE)
        )


HEADLINES = (
    Headline(r"sequential", STORES),
    Headline(r"random", rf"{STORES}|take|gather|write"),
    Headline(r"\btake|gather", STORES),
    Headline(r"\+=|update", STORES),
    Headline(r"loop", STORES),
    Headline(r"sort", STORES),
    Headline(rf"(?=.*({COMPRESSED})).*(sequential|sum)", rf"{NETWORK}|write|noise"),
    Headline(rf"(?=.*({COMPRESSED})).*random", rf"{NETWORK}|write|noise"),
    Headline(NETWORK, COMPRESSED),
    Headline(r"fault", STORES),
)


def make_headlines(findings: Findings) -> Table | None:
    """None where the run has none of them."""
    rows = []
    for headline in HEADLINES:
        found = [each for each in findings.comparisons if headline.matches(each) and find_fastest_peer(each)]
        if found:
            rows.append(_make_row(_choose(found)))
    return Table("", HEADER, tuple(rows)) if rows else None


def _choose(comparisons: list[Comparison]) -> Comparison:
    """Returns one of the first subject: on the fast device, without an axis, or at the end of it: of the most data."""
    best = min(map(_rank, comparisons))
    found = [each for each in comparisons if _rank(each) == best]
    return [each for each in found if each.key.subject == found[0].key.subject][-1]


def _rank(comparison: Comparison) -> tuple[bool, int]:
    return comparison.key.device != "fast", len(comparison.key.axis)


def _make_row(comparison: Comparison) -> tuple[str, ...]:
    ratios = find_fastest_peer(comparison)
    assert ratios is not None
    spread = format_spread(ratios.least, ratios.most) if len(ratios.each) > 1 else "one round"
    label = describe_comparison(comparison.key)
    if ratios.ours.note and len(ratios.ours.note) <= NOTE_LENGTH:
        label += f" ({ratios.ours.note})"
    peer = f"{describe_rate(ratios.theirs)} ({ratios.theirs.contender})"
    return label, describe_rate(ratios.ours), peer, format_ratio(ratios.median), spread
