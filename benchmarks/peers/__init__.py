"""Contenders that are not ours, each at its recommended settings: functions that children call (harness/child.py)."""
