"""The few comparisons that a newcomer wants to see: umappy against the fastest of the peers, won or lost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from findings.costs import describe_rate
from findings.model import Comparison, Findings
from findings.ratios import find_fastest_peer
from findings.tables import Table
from findings.units import format_axis_value, format_ratio, format_spread

HEADER = ("", "umappy", "fastest peer", "peer's time / umappy's", "spread")
STORES = r"zstd|nbd|network"


@dataclass(frozen=True)
class Headline:
    """A row: the comparison whose subject or axis matches `pattern`, and not `without`."""

    label: str
    pattern: str
    without: str = STORES

    def matches(self, comparison: Comparison) -> bool:
        key = comparison.key
        text = " ".join([key.subject, *(f"{name} {format_axis_value(name, value)}" for name, value in key.axis)])
        return bool(re.search(self.pattern, text, re.IGNORECASE) and not re.search(self.without, text, re.IGNORECASE))


HEADLINES = (
    Headline("sum of a cold file", r"sequential"),
    Headline("random reads, no hint", r"random", rf"{STORES}|take|gather|write"),
    Headline("gather, `umappy.take`", r"\btake|gather"),
    Headline("`a += 1`", r"\+=|update"),
    Headline("loop over a file again and again", r"loop"),
    Headline("sort in place", r"sort"),
    Headline("zstd, cold sequential read", r"zstd.*(sequential|sum)", r"nbd|network|write"),
    Headline("zstd, random reads", r"zstd.*random", r"nbd|network|write"),
    Headline("network block device", r"network|nbd", r"zstd"),
    Headline("one fault, to data", r"fault"),
)


def make_headlines(findings: Findings) -> Table | None:
    """None where the run has none of them."""
    rows = []
    for headline in HEADLINES:
        found = [each for each in findings.comparisons if headline.matches(each) and find_fastest_peer(each)]
        if found:
            rows.append(_make_row(headline, _choose(found)))
    return Table("", HEADER, tuple(rows)) if rows else None


def _choose(comparisons: list[Comparison]) -> Comparison:
    """Returns the one on the fast device, without an axis, or far along it: where memory is short."""
    best = min((each.key.device != "fast", len(each.key.axis)) for each in comparisons)
    return [each for each in comparisons if (each.key.device != "fast", len(each.key.axis)) == best][-1]


def _make_row(headline: Headline, comparison: Comparison) -> tuple[str, ...]:
    ratios = find_fastest_peer(comparison)
    assert ratios is not None
    spread = format_spread(ratios.least, ratios.most) if len(ratios.each) > 1 else "one round"
    peer = f"{describe_rate(ratios.theirs)} ({ratios.theirs.contender})"
    return headline.label, describe_rate(ratios.ours), peer, format_ratio(ratios.median), spread
