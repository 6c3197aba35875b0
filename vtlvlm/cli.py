"""The command line: one table of commands. Each is chosen before torch is imported, so that light ones start at once."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "the whole pipeline on rendered videos, with a report at the end",
    "synth": "render an NTU-like set of videos with skeletons",
    "prepare": "look through a folder of videos, write its index, say what is wrong with it",
    "compose": "build a small LLaVA from the SmolLM2 language model",
    "extract": "videos to a feature cache",
    "probe": "linear probes on a feature cache, to compare every result with",
    "tokenize": "features to event sentences, with a trained stage 1",
    "classify": "videos to their likeliest actions",
    "export": "bundle a trained run for classify",
    "consolidate": "one file, or a LLaVA, of a checkpoint in shards",
    "bench": "measure this machine against what the project promises",
    "report": "the report of what demo left",
    "fit": "train stage 1 or stage 2 from a configuration",
    "validate": "measure a checkpoint on the validation people",
    "test": "measure a checkpoint on the test split",
    "predict": "probabilities for every clip",
}
MEMORY = "Lower --data.micro_batch_size, which leaves the batch as it is; stage 2 also has reasoner.gradient_checkpointing."
"""What to do when a GPU is full"""
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
"""What is wrong with a path or its disk, and not with the program"""
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


def overview() -> str:
    """The text of ``vtlvlm --help``."""
    rows = "\n".join(f"  {name:11s} {text}" for name, text in COMMANDS.items())
    return f"usage: vtlvlm COMMAND [options]\n\n{rows}\n\n`vtlvlm COMMAND --help` tells the rest; --debug shows the traceback of an error."


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and lets errors through."""
    from vtlvlm.errors import UsageError

    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from vtlvlm import __version__

        print(__version__)
        return 0
    name, rest = arguments[0], list(arguments[1:])
    if name not in COMMANDS:
        raise UsageError(f"{name}: no such command; there are {', '.join(COMMANDS)}")
    if name in TRAINER_COMMANDS:
        from vtlvlm.commands import trainer

        return trainer.run([name, *rest])
    module = importlib.import_module(f"vtlvlm.commands.{name}")
    if hasattr(module, "main"):  # commands whose options are those of a configuration
        return module.main(rest)
    parser = argparse.ArgumentParser(
        prog=f"vtlvlm {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(rest))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: exit code 0 for success, 1 for bad data, 2 for wrong use, 130 after an interruption."""
    from vtlvlm.errors import DataError, UsageError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        return run([a for a in arguments if a != "--debug"])
    except (UsageError, DataError) as error:
        if debug:
            raise
        sys.stderr.write(f"vtlvlm: {error}\n")  # in one piece: several processes may say it at once
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        if debug or error.errno not in UNWRITABLE:
            raise
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"vtlvlm: {place}{error.strerror}; name another folder, or make room or rights there\n")
        return 1
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        advice = MEMORY if arguments[0] in (*TRAINER_COMMANDS, "extract", "tokenize") else ""
        sys.stderr.write(f"vtlvlm: {str(error).splitlines()[0]} {advice}".rstrip() + "\n")
        return 1
    except KeyboardInterrupt:
        return interrupted(arguments)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # which Lightning makes of one
            raise
        return interrupted(arguments)


def interrupted(arguments: Sequence[str]) -> int:
    """Say how to go on; returns the exit code."""
    fit = arguments[:1] == ["fit"]
    how = "add --ckpt_path RUN/checkpoints/last.ckpt to go on where its last epoch ended" if fit else "the same command continues"
    sys.stderr.write(f"vtlvlm: interrupted; {how}\n")
    return 130


if __name__ == "__main__":
    sys.exit(main())
