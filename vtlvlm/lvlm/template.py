"""Renders chat templates from anywhere within limits.

A template is a program (Jinja, in the sandbox of transformers). It reaches no file and no code, but it may loop for ever or make a text
that takes all memory, even while it is compiled. So it is rendered in a process of its own, which the system stops at its limits.
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
"""What one rendering may take: seconds of the processor, seconds in all, bytes of memory, bytes of the text"""


def render(tokenizer: PreTrainedTokenizerBase, content: Any) -> str | None:
    """The tokenizer's chat template applied to one message of the user, with the answer's beginning.

    Args:
        tokenizer: With a chat template.
        content: Of the message, as text or in parts.

    Returns:
        The text; None where the template has none for this content.

    Raises:
        UsageError: The template takes more time, memory or text than any chat form needs.
    """
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
    """In the child: write the text as JSON, or null, and leave without any of the parent's clean-up."""
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
        except Exception:  # templates raise what they like on a content they were not written for
            text = None
        written = memoryview(json.dumps(text).encode())
        while len(written):
            written = written[os.write(target, written) :]
        os._exit(0)
    finally:
        os._exit(1)


def _read(source: int) -> bytes | None:
    """All that the child writes; None where it takes too long or is too much."""
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
