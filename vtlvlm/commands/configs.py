"""List the shipped configurations, or copy them to change them.

Every command accepts a name from this list: `vtlvlm fit --config stage1_small.yaml`. A file of that name in the current folder takes
precedence.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--copy", type=Path, metavar="DIR", help="new folder to copy all of them to, with includes and notes")


def run(args: argparse.Namespace) -> int:
    """Print the list, or make the copy."""
    from vtlvlm.configs import headings, shipped
    from vtlvlm.errors import UsageError
    from vtlvlm.system.files import appearing

    if args.copy is None:
        rows = [*headings()]
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:{width}s}  {text}".rstrip() for name, text in rows))
        return 0
    if args.copy.is_symlink() or (args.copy.exists() and (not args.copy.is_dir() or any(args.copy.iterdir()))):
        raise UsageError(f"{args.copy}: exists already and is kept as it is; name a new folder")
    with appearing(args.copy) as folder:
        shutil.copytree(shipped(), folder, dirs_exist_ok=True)
    print(f"{args.copy}: {len([*args.copy.rglob('*.yaml')])} configurations; use them as --config {args.copy}/stage1_small.yaml")
    return 0
