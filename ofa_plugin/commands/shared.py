"""What several verbs need: a number within its limits."""

from __future__ import annotations

from ..errors import UserError


def within(flag: str, value: int, least: int, most: int | None = None) -> int:
    """The value of a flag. Raises UserError where it is too small, or too large."""
    if value < least or (most is not None and value > most):
        limits = f"from {least} on" if most is None else f"from {least} to {most}"
        raise UserError(f"{flag} {value}: give a number {limits}")
    return value
