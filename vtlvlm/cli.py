"""The command line: one table of commands. Each is chosen before torch is imported, so that light ones start at once."""

from __future__ import annotations

import argparse
import errno
import importlib
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

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
    "configs": "list the shipped configurations, or copy them",
    "fit": "train stage 1 or stage 2 from a configuration",
    "validate": "measure a checkpoint on the validation people",
    "test": "measure a checkpoint on the test split",
    "predict": "probabilities for every clip",
}
MEMORY = "Lower --data.micro_batch_size, which leaves the batch as it is; stage 2 also has reasoner.llava.gradient_checkpointing."
"""What to do when a GPU is full"""
SHORT = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR),
        "name another folder, or make room or rights there",
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit with `ulimit -n 65536`, or use fewer workers"),
    errno.ENOMEM: "close other programs, use fewer workers or smaller batches, or a machine with more memory",
}
"""What to do about an error of the system"""
DEFECT = 70
"""Exit code of an unforeseen error (EX_SOFTWARE of sysexits.h)"""
WORKER_LOST = "mostly the system ends one for want of memory: use fewer workers (--data.num_workers) or smaller --data.micro_batch_size"
"""What to do about a loading process that is gone"""
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error", "Socket Timeout", "recvValue failed")
"""What the processes of a run say when one of them is gone"""
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


def overview() -> str:
    """The text of ``vtlvlm --help``."""
    rows = "\n".join(f"  {name:11s} {text}" for name, text in COMMANDS.items())
    return f"usage: vtlvlm COMMAND [options]\n\n{rows}\n\n`vtlvlm COMMAND --help` tells the rest; --debug shows the traceback of an error."


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and lets errors through."""
    from vtlvlm.errors import UsageError
    from vtlvlm.system.seeds import require_seed

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
    if name in (*TRAINER_COMMANDS, "extract", "tokenize"):
        from vtlvlm.configs import resolved

        rest = resolved(rest)
    if name in TRAINER_COMMANDS:
        found: int = importlib.import_module("vtlvlm.commands.trainer").run([name, *rest])
        return found
    module = importlib.import_module(f"vtlvlm.commands.{name}")
    if hasattr(module, "main"):  # commands whose options are those of a configuration
        return module.main(rest)
    parser = Parser(prog=f"vtlvlm {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    parsed = parser.parse_args(rest)
    require_seed(getattr(parsed, "seed", None), "--seed")
    return module.run(parsed)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a line, as all others are."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was given."""
        from vtlvlm.errors import UsageError

        raise UsageError(f"{self.prog.removeprefix('vtlvlm ')}: {message}; `{self.prog} --help` lists the options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: exit code 0 for success, 1 for bad data, 2 for wrong use, 70 for a defect of the program, 130 after an interruption."""
    from vtlvlm.system import streams

    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, given = "--debug" in given, [word for word in given if word != "--debug"]
    streams.occupy()
    with streams.harmless(vital=given[:1] == ["classify"]) as (out, err), streams.one_line_each(debug):
        if sys.__stdout__ is None and arguments is None:
            err.write("vtlvlm: standard output is closed; send it to a file or to /dev/null\n")
            return 1
        code = 0
        try:
            code = attempt(given, debug)
            out.flush()
        except streams.Unread:
            code = streams.UNREAD
        except SystemExit as error:
            with suppress(streams.Unread):
                out.flush()
            if out.failure is None or error.code:
                raise
        if out.failure is not None and not streams.broken_pipe(out.failure):
            err.write(f"vtlvlm: standard output: {out.failure.strerror}; send it to another place\n")
            return code if code not in (0, streams.UNREAD) else 1
        return code


def attempt(arguments: Sequence[str], debug: bool) -> int:
    """Run one command and say what went wrong in a line; with ``debug`` every error is let through."""
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return interrupted(arguments)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # which Lightning makes of one
            raise
        return interrupted(arguments)
    except Exception as error:
        from vtlvlm.system.streams import Unread

        if debug or isinstance(error, Unread):
            raise
        code, line = told(error, arguments)
        sys.stderr.write(f"vtlvlm: {line}\n")  # in one piece: several processes may say it at once
        return code


def told(error: Exception, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of an error and the line that says it, with what to do."""
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.system.renamed import in_refusal
    from vtlvlm.system.streams import gist
    from vtlvlm.system.text import shown

    kind = type(error).__name__
    if isinstance(error, UsageError | DataError):
        return 2 if isinstance(error, UsageError) else 1, shown(error)
    if isinstance(error, argparse.ArgumentError):
        command = arguments[0] if arguments and arguments[0] in COMMANDS else "COMMAND"
        line = _flat(error.message)
        return 2, f"{shown(line, 1200)}{in_refusal(line)}; `vtlvlm {command} --help` lists the options"
    if kind == "OutOfMemoryError":  # torch's, which is not imported for this
        advice = MEMORY if arguments[0] in (*TRAINER_COMMANDS, "extract", "tokenize") else ""
        return 1, f"{gist(error)} {advice}".rstrip()
    if isinstance(error, MemoryError):
        return 1, f"out of memory{f' ({text})' if (text := gist(error)) else ''}; {SHORT[errno.ENOMEM]}"
    if isinstance(error, OSError) and error.errno is not None:
        place = "".join(f"{shown(name)}: " for name in (error.filename,) if name not in (None, ""))
        advice = f"; {SHORT[error.errno]}" if error.errno in SHORT else ""
        return 1, f"{place}{shown(error.strerror or gist(error))}{advice}"
    # These errors have no types: _try_get_data and _get_data in torch/utils/data/dataloader.py, recvfds in multiprocessing/reduction.py.
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return 1, f"{gist(error)}; {WORKER_LOST}"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out"):
        return 1, f"{gist(error)}: a loading process hangs; see whether the disk answers, or use --data.num_workers 0 to find the clip"
    if isinstance(error, RuntimeError) and "received 0 items of ancdata" in str(error):
        return 1, f"too many open files; {SHORT[errno.EMFILE]}"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_LOST):
        return 1, f"another process of this run has ended, and its own message says why ({gist(error, 200)})"
    return DEFECT, f"this is a defect: {kind}: {gist(error)}; run again with --debug and report it"


def _flat(text: str) -> str:
    """A long error of the configuration's parser as one line, without the given value and without types that were not meant."""
    line = " ".join(line.strip() for line in text.partition("Given value")[0].splitlines() if line.strip())
    for pattern, instead in _OF_THE_PARSER:
        line = re.sub(pattern, instead, line)
    return line.rstrip(".;: -")


_OF_THE_PARSER = (
    (r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: (- )?", ""),
    (r"(- )?Expected a <class 'NoneType'>( - )?", ""),
    (r"Expected an? <class '([\w.]+)'>", r"expected \1"),
    (r"Parser key ", ""),
)
"""Parts of jsonargparse's errors that mean nothing to users"""


def interrupted(arguments: Sequence[str]) -> int:
    """Say how to go on; returns the exit code."""
    fit = arguments[:1] == ["fit"]
    how = "add --ckpt_path last to go on where its last epoch ended" if fit else "the same command continues"
    sys.stderr.write(f"vtlvlm: interrupted; {how}\n")
    return 130


if __name__ == "__main__":
    sys.exit(main())
