"""Why a contender has no figure."""

from __future__ import annotations


class ContenderError(Exception):
    """It failed: killed, too slow, a wrong result, an error of its own."""
