"""Contenders that are not ours, each at its recommended settings: functions that children call, see harness/child.py."""
