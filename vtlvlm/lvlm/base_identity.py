"""Identifies the LLaVA that weights belong to, without reading gigabytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import load_config, weight_files

PIECES, PIECE = 256, 65_536
"""Number of pieces of a weight file that are hashed, and bytes of each"""


def base_identity(name: str, revision: str | None = None) -> dict[str, Any]:
    """The identity of a LLaVA, for checkpoints. Reads only parts of the weights; downloads the LLaVA if necessary.

    Returns:
        ``llava``: the name as given. ``revision``: the commit of a hub name. ``config``: a hash of config.json. ``weights``: a hash of the
        weight files' names, sizes and 256 pieces of 64 KiB each, spread evenly over each file (every 55 MB in 7 billion weights, so that
        they touch any trained part).

    Raises:
        UsageError: As :func:`load_config`.
    """
    load_config(name, revision)
    described = Path(cached_file(name, "config.json", revision=revision))
    weights = hashlib.blake2b(digest_size=16)
    for file in weight_files(name, revision):
        size = file.stat().st_size
        weights.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            weights.update(stream.read(PIECE))
            for piece in range(1, PIECES):
                stream.seek(max(0, size - PIECE) * piece // (PIECES - 1))
                weights.update(stream.read(PIECE))
    settings = json.dumps(json.loads(described.read_text()), sort_keys=True)
    return {
        "llava": name,
        "revision": extract_commit_hash(str(described), None) or revision,
        "config": hashlib.blake2b(settings.encode(), digest_size=16).hexdigest(),
        "weights": weights.hexdigest(),
    }


def require_same_base(made: dict[str, Any], name: str, revision: str | None, what: str) -> None:
    """Refuse weights that were trained on another LLaVA.

    Args:
        made: :func:`base_identity` of the LLaVA of their training.
        name: The LLaVA in use.
        revision: The hub's branch, tag or commit.
        what: The weights, for the message.

    Raises:
        UsageError: The LLaVAs differ; names both.
    """
    here = base_identity(name, revision)
    if made["weights"] != here["weights"]:
        raise UsageError(
            f"{what} was trained on {made['llava']} (weights {made['weights'][:8]}), {name} is another LLaVA ({here['weights'][:8]}): "
            "give the one it was trained on"
        )
