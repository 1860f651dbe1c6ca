"""Checks of a recipe's values: each raises UsageError with the key and the value as given. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cropl.errors import UsageError, nearest


def integer(given: Mapping[str, Any], key: str, least: int, null: bool = False) -> None:
    """An integer of at least `least`; None passes only where `null` is set. A key that is absent has its default."""
    value = given.get(key, least)
    if value is None and null:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"study: {key} {value!r} must be an integer, at least {least}")


def text(given: Mapping[str, Any], key: str, null: bool = False) -> None:
    """Text that is not empty; None passes only where `null` is set. A key that is absent has its default."""
    value = given.get(key, "default")
    if value is None and null:
        return
    if not isinstance(value, str) or not value:
        raise UsageError(f"study: {key} {value!r} must be text{' or null' if null else ''}")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping with text keys, as a dict; None is the empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{where} {value!r} must be a mapping of names to values")
    return dict(value)


def integers(value: Any, where: str) -> tuple[int, ...]:
    """A list of non-negative integers, at least one; a single number is a list of one."""
    values = tuple(each(value))
    if not values or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in values):
        raise UsageError(f"{where} {value!r} must be a list of integers from 0 on, at least one")
    return values


def each(value: Any) -> list[Any]:
    """A list as it is, and anything else as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def one_of(value: Any, known: tuple[str, ...], where: str) -> None:
    """One of the `known` words."""
    if value not in known:
        raise UsageError(f"{where}: unknown value {value!r}{nearest(str(value), known)}")
