"""Calls of umappy's that may not be there yet: NotYetError instead of AttributeError."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import umappy
from harness.errors import NotYetError


def find(owner: Any, name: str) -> Callable[..., Any]:
    """Returns the function `name` of `owner`, a module or an object."""
    function: Callable[..., Any] | None = getattr(owner, name, None)
    if function is None:
        label = getattr(owner, "__name__", type(owner).__name__)
        raise NotYetError(f"{label}.{name}")
    return function


def make_pager(memory: int, **options: Any) -> umappy.Pager:
    """Makes a pager; NotYetError for keywords that it does not take yet."""
    for name in options:
        if name not in inspect.signature(umappy.Pager).parameters:
            raise NotYetError(f"Pager({name}=...)")
    return umappy.Pager(memory, **options)


def has_policies() -> bool:
    return "policy" in inspect.signature(umappy.Pager).parameters
