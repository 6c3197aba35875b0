"""Seeds of random numbers."""

from __future__ import annotations

from typing import Any

from vtlvlm.errors import UsageError

LIMIT = 2**32
"""numpy takes no seed from here on"""


def require_seed(value: Any, name: str) -> None:
    """Refuse a seed that numpy and Lightning do not take; a value that is not a whole number is left to its reader.

    Args:
        value: The seed.
        name: The setting, for the message.

    Raises:
        UsageError: It is below 0 or above 2**32 - 1.
    """
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < LIMIT:
        raise UsageError(f"{name} {value}: a seed is a whole number from 0 to {LIMIT - 1}")
