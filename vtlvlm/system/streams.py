"""Wraps standard output and standard error. Escapes harmful text, fits text to the encoding, and handles closed or full outputs."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from vtlvlm.system.text import plain, shown, shown_lines

UNREAD = 128 + 13
"""Exit code after the reader of standard output has closed it, as shells report SIGPIPE"""
_MOVES_UP = re.compile("(\x1b\\[A)+")


class Unread(OSError):
    """The stream can no longer be written."""


class Stream:
    """A text stream that writes no harmful text. Control characters become escapes; characters outside the encoding become plain ones.

    Args:
        stream: The stream to write to.
        vital: Raise :class:`Unread` when a write fails; otherwise drop all further text and continue.

    Attributes:
        failure: The error of the first failed write; None before it.
    """

    def __init__(self, stream: TextIO, vital: bool = False) -> None:
        self._stream, self._vital = stream, vital
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, and return its length."""
        harmless = text if _MOVES_UP.fullmatch(text) else shown_lines(text)  # stacked progress bars move the cursor up
        self._try(lambda: self._stream.write(plain(harmless, getattr(self._stream, "encoding", None))))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self.failure = error
            if self._vital:
                raise Unread(error.errno, error.strerror) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def forget(self) -> None:
        """Discard the buffered text, so that the interpreter's flush at exit does not fail."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def harmless(vital: bool) -> Iterator[tuple[Stream, Stream]]:
    """Wrap ``sys.stdout`` and ``sys.stderr`` in :class:`Stream`, and restore the caller's streams at the end.

    Args:
        vital: Whether the command ends once standard output cannot be written.
    """
    own = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout or _nowhere(), vital), Stream(sys.stderr or _nowhere())
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = own
        for stream in (out, err):
            with suppress(Unread):
                stream.flush()
            if stream.failure is not None:
                stream.forget()


def _nowhere() -> TextIO:
    """A substitute for a stream that was closed before the program started."""
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - open until the process ends


def occupy() -> None:
    """Open the null device under the numbers of closed standard streams, so that no file gets such a number and the output."""
    with suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)


@contextmanager
def one_line_each(debug: bool) -> Iterator[None]:
    """Show each warning in one line without its source line; likewise errors in threads and while the interpreter cleans up.

    Args:
        debug: Change nothing.
    """
    if debug:
        yield
        return
    own = warnings.showwarning, threading.excepthook, sys.unraisablehook
    warnings.showwarning = _warn
    threading.excepthook = lambda found: _tell(found.exc_value, found.exc_type)
    sys.unraisablehook = lambda found: _tell(found.exc_value, found.exc_type)
    try:
        yield
    finally:
        warnings.showwarning, threading.excepthook, sys.unraisablehook = own


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    with suppress(Exception):
        sys.stderr.write(f"vtlvlm: warning: {shown(_joined(str(message)))}\n")


def _tell(error: BaseException | None, kind: type[BaseException]) -> None:
    if issubclass(kind, (SystemExit, KeyboardInterrupt, BrokenPipeError)):
        return
    with suppress(Exception):
        sys.stderr.write(f"vtlvlm: warning: {kind.__name__}: {gist(error)}\n")


def _joined(text: str) -> str:
    """The lines of a text as one line."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def gist(error: BaseException | None, most: int = 600) -> str:
    """The decisive line of an exception's text: the last line if the text holds another process's traceback, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return ""
    foreign = any(line.startswith("Traceback (most recent call last)") for line in lines)
    return shown(lines[-1] if foreign else lines[0], most)


def broken_pipe(error: OSError | None) -> bool:
    """Whether a stream failed because its reader closed it, which needs no message."""
    return error is not None and error.errno in (errno.EPIPE, errno.ESHUTDOWN)
