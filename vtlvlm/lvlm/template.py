"""Renders untrusted chat templates within limits.

A template is a program (Jinja, in transformers' sandbox). It cannot reach files or run other code. It can loop for ever or produce a text
that fills the memory, even while it is compiled. A separate process therefore renders it, and the system stops this process at its limits.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from vtlvlm.errors import UsageError

SECONDS, WALL, ROOM, LENGTH = 2, 60.0, 1 << 30, 4 << 20
"""Limits of one rendering: seconds of processor time, seconds in all, bytes of memory, bytes of text"""

_KEPT: dict[str, str | None] = {}
"""The last few renderings: context and labels of one model need the same"""
MOST_KEPT = 8


def render(tokenizer: PreTrainedTokenizerBase, content: Any) -> str | None:
    """Applies the tokenizer's chat template to one user message, up to the start of the answer. The same is not rendered twice.

    Args:
        tokenizer: Has a chat template.
        content: The message, as text or in parts.

    Returns:
        The text; None if the template does not accept this content.

    Raises:
        UsageError: The template exceeds the limits.
    """
    key = json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map, content], default=str)
    if key not in _KEPT:
        text = _render_alone(tokenizer, content)
        for oldest in list(_KEPT)[: len(_KEPT) - MOST_KEPT + 1]:
            del _KEPT[oldest]
        _KEPT[key] = text
    return _KEPT[key]


def _render_alone(tokenizer: PreTrainedTokenizerBase, content: Any) -> str | None:
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        _render_and_leave(tokenizer, content, target)
    os.close(target)
    try:
        text = _read(source)
    finally:
        os.close(source)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if text is None or text == b"":
        raise UsageError(
            f"{tokenizer.name_or_path}: its chat template was stopped (it takes more than {SECONDS} s, {ROOM >> 30} GiB or "
            f"{LENGTH >> 20} MiB of text, or ends the process); repair or remove it"
        )
    found = json.loads(text)
    return found if isinstance(found, str) else None


def _render_and_leave(tokenizer: PreTrainedTokenizerBase, content: Any, target: int) -> None:
    """Child process: writes the text as JSON (or null) and exits without the parent's clean-up."""
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        with suppress(OSError, ValueError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        except (MemoryError, RecursionError):
            os._exit(1)
        except Exception:  # templates raise anything on content that they do not support
            text = None
        written = memoryview(json.dumps(text).encode())
        while len(written):
            written = written[os.write(target, written) :]
        os._exit(0)
    finally:
        os._exit(1)


def _read(source: int) -> bytes | None:
    """Everything that the child writes; None if it takes too long or writes too much."""
    parts: list[bytes] = []
    until = time.monotonic() + WALL
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([source], [], [], left)[0]:
            return None
        part = os.read(source, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
        if sum(map(len, parts)) > LENGTH:
            return None
