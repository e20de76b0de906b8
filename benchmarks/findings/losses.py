"""The comparisons that umappy loses, as a table."""

from __future__ import annotations

from findings.costs import describe_rate
from findings.model import Findings, is_peer
from findings.ratios import Ratios, find_losses
from findings.tables import Table, describe_comparison
from findings.units import NONE, format_ratio, format_spread

HEADER = ("subject", "device", "peer", "peer's rate", "umappy's rate", "time / umappy's", "spread")


def make_loss_table(findings: Findings, *, of_peers: bool) -> Table:
    """Every contender that is faster than umappy, the fastest first: the peers, or the ceilings."""
    losses = [loss for loss in find_losses(findings) if is_peer(loss.theirs.contender) == of_peers]
    return Table("where peers win" if of_peers else "ceilings", HEADER, tuple(map(_make_row, losses)))


def _make_row(loss: Ratios) -> tuple[str, ...]:
    return (
        describe_comparison(loss.key),
        loss.key.device or NONE,
        loss.theirs.contender,
        describe_rate(loss.theirs),
        describe_rate(loss.ours),
        format_ratio(loss.median),
        format_spread(loss.least, loss.most) if len(loss.each) > 1 else NONE,
    )
