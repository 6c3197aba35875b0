"""One line where a library's writing of tensors fails: a full disk, a quota, a file that may not grow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vtlvlm.errors import DataError
from vtlvlm.system.text import shown


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """Errors of the system, of safetensors and of ``torch.save`` as one that names the place and the remedy.

    Raises:
        DataError: Writing failed.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error) and "iostream" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be written ({shown(reason, 160)}); make room or rights there, or name another place") from error
