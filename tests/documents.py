"""What the documents ask their reader to type: fenced blocks, commands in the comments of configurations, and commands in the text."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "lightning_configs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


class Line(NamedTuple):
    """A command as it is typed."""

    document: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """The language and the content of each fenced block."""
    for found in BLOCK.finditer(path.read_text(encoding="utf-8")):
        yield found[2], found[3]


def _lines(path: Path, text: str) -> Iterator[Line]:
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if words := shlex.split(line, comments=True):
            yield Line(str(path.relative_to(ROOT)), words)


def typed() -> list[Line]:
    """Every line of a block without a language, and every command in a comment of a configuration."""
    found = [line for path in DOCUMENTS for language, text in blocks(path) if language in ("", "bash", "sh") for line in _lines(path, text)]
    for path in sorted((ROOT / "lightning_configs").rglob("*.yaml")):
        comments = re.sub(r"\\\n#\s*", " ", path.read_text(encoding="utf-8"))
        found += [line for text in re.findall(r"^# {2,}(vtlvlm .*)$", comments, re.MULTILINE) for line in _lines(path, text)]
    return found


def mentioned() -> list[Line]:
    """Every command in backquotes in the text, which may be a part of one."""
    found = []
    for path in DOCUMENTS:
        for text in re.findall(r"`((?:vtlvlm|make) [^`]+)`", BLOCK.sub("", path.read_text(encoding="utf-8"))):
            found.append(Line(str(path.relative_to(ROOT)), text.split()))
    return found
