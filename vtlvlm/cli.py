"""The command line: a table of commands. A command is chosen before torch is imported, so that light commands start at once."""

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
    "demo": "run the whole pipeline on rendered videos and write a report",
    "synth": "render NTU-like videos with skeletons",
    "poses": "find the people in videos and write their skeletons",
    "prepare": "check a folder of videos and write its index",
    "compose": "build a small LLaVA from the SmolLM2 language model",
    "texts": "embed texts about actions and body parts, for the method GAP",
    "fetch": "download a configuration's pretrained weights, for machines without network",
    "extract": "turn videos into a feature cache",
    "probe": "fit linear probes on a feature cache, the baseline of every result",
    "tokenize": "turn features into event sentences with a trained stage 1",
    "extract-hidden": "run event sentences through the layers below the prompts, once for a whole training",
    "classify": "recognise the actions in video files",
    "study": "let people rate event sentences, and measure them automatically (Table III)",
    "dictionary": "list what each code of a codebook is, as a page, JSON and safetensors",
    "segment": "find the actions in long videos, with their times",
    "app": "open a page in the browser: drop a video, see its actions and its event sentence",
    "search": "find the clips like a clip, of an action or a sentence, or with a pattern of codes",
    "caption": "write captions of videos with a model that learned them, and measure them",
    "export": "bundle a trained run for classify",
    "consolidate": "merge a sharded checkpoint into one file or a LLaVA folder",
    "bench": "benchmark this machine against the project's targets",
    "ablate": "run a grid of experiments and print its table",
    "fuse": "fuse the tests of several runs, such as the streams of a skeleton network",
    "report": "write tables and figures of grids, of runs or of a demo",
    "submit": "train on a Slurm cluster: submit the chain of commands as jobs",
    "configs": "list or copy the shipped configurations",
    "fit": "train stage 1 or stage 2 from a configuration",
    "validate": "evaluate a checkpoint on the validation people",
    "test": "evaluate a checkpoint on the test split",
    "predict": "write the probabilities of every clip",
}
MEMORY = "Lower --data.micro_batch_size (the batch stays as large); stage 2 also has reasoner.llava.gradient_checkpointing."
"""Advice when a GPU is out of memory"""
SHORT = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR),
        "name another folder, or free space or correct the permissions there",
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit with `ulimit -n 65536`, or use fewer workers"),
    errno.ENOMEM: "close other programs, use fewer workers or smaller batches, or use a machine with more memory",
}
"""Advice for each error number of the operating system"""
DEFECT = 70
"""Exit code of an unforeseen error (EX_SOFTWARE of sysexits.h)"""
WORKER_LOST = "the system probably ran out of memory: use fewer workers (--data.num_workers) or a smaller --data.micro_batch_size"
"""Advice when a worker of the data loader has died"""
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error", "Socket Timeout", "recvValue failed")
"""Messages of the other processes of a run after one has ended"""
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


def overview() -> str:
    """The text of ``vtlvlm --help``."""
    rows = "\n".join(f"  {name:14s} {text}" for name, text in COMMANDS.items())
    return f"usage: vtlvlm COMMAND [options]\n\n{rows}\n\n`vtlvlm COMMAND --help` lists its options; --debug shows an error's traceback."


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors pass through."""
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
    if name in (*TRAINER_COMMANDS, "fetch", "extract", "tokenize", "extract-hidden"):
        from vtlvlm.configs import resolved
        from vtlvlm.system import signals

        signals.begin()
        rest = resolved(rest)
    if name in TRAINER_COMMANDS:
        found: int = importlib.import_module("vtlvlm.commands.trainer").run([name, *rest])
        return found
    module = importlib.import_module(f"vtlvlm.commands.{name.replace('-', '_')}")
    if hasattr(module, "main"):  # fetch, extract, tokenize and extract-hidden, whose options are a configuration's
        return module.main(rest)
    parser = Parser(prog=f"vtlvlm {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    parsed = parser.parse_args(rest)
    require_seed(getattr(parsed, "seed", None), "--seed")
    return module.run(parsed)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line each, like all other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a UsageError."""
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
    """Run one command and print an error as one line. With ``debug``, every error passes through."""
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return interrupted(arguments)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns an interruption into this
            raise
        return interrupted(arguments)
    except Exception as error:
        from vtlvlm.system.streams import Unread

        if debug or isinstance(error, Unread):
            raise
        code, line = told(error, arguments)
        sys.stderr.write(f"vtlvlm: {line}\n")  # one write, since several processes may print it at once
        return code


def told(error: Exception, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of an error, and its line with the remedy."""
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
    if kind == "OutOfMemoryError":  # torch's: its name is enough, so torch is not imported
        advice = MEMORY if arguments[0] in (*TRAINER_COMMANDS, "extract", "tokenize", "extract-hidden") else ""
        return 1, f"{gist(error)} {advice}".rstrip()
    if isinstance(error, MemoryError):
        return 1, f"out of memory{f' ({text})' if (text := gist(error)) else ''}; {SHORT[errno.ENOMEM]}"
    if isinstance(error, OSError) and error.errno is not None:
        place = "".join(f"{shown(name)}: " for name in (error.filename,) if name not in (None, ""))
        advice = f"; {SHORT[error.errno]}" if error.errno in SHORT else ""
        return 1, f"{place}{shown(error.strerror or gist(error))}{advice}"
    # These errors have no type of their own: _try_get_data and _get_data in torch/utils/data/dataloader.py, recvfds in
    # multiprocessing/reduction.py.
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return 1, f"{gist(error)}; {WORKER_LOST}"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out"):
        return 1, f"{gist(error)}: a loading process hangs; check whether the disk responds, or use --data.num_workers 0 to find the clip"
    if isinstance(error, RuntimeError) and "received 0 items of ancdata" in str(error):
        return 1, f"too many open files; {SHORT[errno.EMFILE]}"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_LOST):
        return 1, f"another process of this run has ended, and its own message says why ({gist(error, 200)})"
    return DEFECT, f"this is a defect: {kind}: {gist(error)}; run again with --debug and report it"


def _flat(text: str) -> str:
    """A long error of the configuration parser as one line, without the given value and the irrelevant types."""
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
    """Print how to continue, and return the exit code."""
    fit = arguments[:1] == ["fit"]
    how = "add --ckpt_path last to continue after its last epoch" if fit else "the same command continues"
    sys.stderr.write(f"vtlvlm: interrupted; {how}\n")
    return 130


if __name__ == "__main__":
    sys.exit(main())
