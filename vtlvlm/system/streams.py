"""Standard output and standard error as a command uses them: nothing harmful, in characters that they can show; they may fail."""

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
"""Exit code of a command whose reader went away: the shell's for SIGPIPE"""
_MOVES_UP = re.compile("(\x1b\\[A)+")


class Unread(OSError):
    """What is written goes nowhere any more."""


class Stream:
    """A text stream that lets nothing harmful through: control characters become escapes, and what the encoding lacks plain characters.

    Args:
        stream: What to write to.
        vital: Raise :class:`Unread` once it cannot be written any more; otherwise the rest is dropped, and the work goes on.

    Attributes:
        failure: Why nothing more is written; None while all is well.
    """

    def __init__(self, stream: TextIO, vital: bool = False) -> None:
        self._stream, self._vital = stream, vital
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        harmless = text if _MOVES_UP.fullmatch(text) else shown_lines(text)  # progress bars below each other move so
        self._try(lambda: self._stream.write(plain(harmless, getattr(self._stream, "encoding", None))))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand everything on."""
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
        """Discard what is still buffered, so that the interpreter's own flush at its end does not fail."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def harmless(vital: bool) -> Iterator[tuple[Stream, Stream]]:
    """Put a :class:`Stream` around ``sys.stdout`` and ``sys.stderr``; the caller's own are restored afterwards.

    Args:
        vital: Whether the command has nothing left to do once standard output cannot be written.
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
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - for as long as the process lives


def occupy() -> None:
    """Open the null device under the numbers of closed standard streams: a file that got one would be written to by accident."""
    with suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)


@contextmanager
def one_line_each(debug: bool) -> Iterator[None]:
    """Show each warning, and each error in a thread or while the interpreter cleans up, in one line without the place in the source.

    Args:
        debug: Leave everything as Python shows it.
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
    """A library's text of several lines as one line."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def gist(error: BaseException | None, most: int = 600) -> str:
    """The line of an exception's text that says what happened: the last one where it holds the traceback of another process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return ""
    foreign = any(line.startswith("Traceback (most recent call last)") for line in lines)
    return shown(lines[-1] if foreign else lines[0], most)


def broken_pipe(error: OSError | None) -> bool:
    """Whether a stream failed because its reader went away, which is not worth a message."""
    return error is not None and error.errno in (errno.EPIPE, errno.ESHUTDOWN)
