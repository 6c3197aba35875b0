"""Reports a library's failure to write tensors in one line: a full disk, a quota, a limit on file sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vtlvlm.errors import DataError
from vtlvlm.system.text import shown


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """Turn errors of the system, of safetensors and of ``torch.save`` into one error that names the place and the remedy.

    Raises:
        DataError: Writing failed.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error) and "iostream" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be written ({shown(reason, 160)}); free space, fix the rights, or name another place") from error
