"""Checks seeds of random numbers."""

from __future__ import annotations

from typing import Any

from vtlvlm.errors import UsageError

LIMIT = 2**32
"""numpy refuses seeds from this number on"""


def require_seed(value: Any, name: str) -> None:
    """Refuse a seed that numpy and Lightning do not accept. Ignores values that are not whole numbers; their readers check them.

    Args:
        value: The seed.
        name: The setting, for the message.

    Raises:
        UsageError: The seed is below 0 or above 2**32 - 1.
    """
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < LIMIT:
        raise UsageError(f"{name} {value}: a seed is a whole number from 0 to {LIMIT - 1}")
