"""Prints pip constraints with the oldest versions that pyproject.toml claims: ``python tests/lowest.py > lowest.txt``."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lowest(extras: tuple[str, ...] = ("compose", "quantized", "dev")) -> list[str]:
    """``name==version`` for each dependency with a lower bound."""
    asked = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = [re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line) for line in asked]
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(lowest()))
