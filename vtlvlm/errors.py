"""The two kinds of error that users can fix. Each message is one line that names the culprit and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """A setting or command that cannot work as given. The command line shows it and exits with 2."""


class DataError(ValueError):
    """An input that cannot be used. The command line shows it and exits with 1."""


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Add the name of a file to errors about its content. A part that refuses a setting does not know where the setting came from.

    Args:
        source: The file or folder that is read.

    Raises:
        UsageError, DataError: The error raised inside. Its message begins with the source, unless it names the source already.
    """
    try:
        yield
    except (UsageError, DataError) as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error
