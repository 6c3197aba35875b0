"""Recognise the actions in video files, or in recordings of bodies with a skeleton network.

Give files or folders. Recordings are .skeleton files, or an .npz file such as NW-UCLA's, of which each recording has a result of its own.
The command prints the most likely actions with their probabilities. An unreadable file does not stop the others: stderr names it, and the
exit code becomes 1. --json also says which frames of the video the model looked at, and the times and codes of its events. --csv prints one
row a file: one action and its probability. --srt FOLDER writes a subtitle for each video, which players show when it lies beside the video.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from vtlvlm.system.files import nan_as_none

if TYPE_CHECKING:
    from vtlvlm.errors import DataError
    from vtlvlm.recognizers.recognizer import Recognition

DEFAULT_MODEL = "runs/demo/bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="video files, or folders of videos; for a skeleton network .skeleton files, or .npz files of recordings",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(DEFAULT_MODEL),
        help="bundle, or run folder or checkpoint of stage 2, a skeleton network or a video network (default: %(default)s)",
    )
    parser.add_argument("--llava", help="folder of the base LLaVA, if it has moved since training")
    parser.add_argument("--vtem", type=Path, help="stage-1 checkpoint, if it has moved since training; a bundle holds its own")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "auto"),
        help="type of the language model's weights (default: as trained; float32 on a CPU)",
    )
    parser.add_argument("--attention", help="attention kernel of the language model, such as sdpa or eager (default: as trained)")
    parser.add_argument("--quantization", choices=("none", "8bit", "4bit"), help="quantisation of the language model (default: as trained)")
    parser.add_argument("--top", type=int, default=5, help="number of actions to show (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (default: cuda if available)")
    printed = parser.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print one JSON object per line: actions, sampled frames, events")
    printed.add_argument("--csv", action="store_true", help="print CSV: file, action, probability, unlike, seconds, error")
    parser.add_argument("--srt", type=Path, metavar="FOLDER", help="folder to write a subtitle file (NAME.srt) of each video into")


def videos(folder: Path) -> tuple[list[Path], list[str]]:
    """The videos in a folder, found as by ``prepare``, and lines about the other files there."""
    from vtlvlm.data.listing import videos_in

    listing = videos_in(folder, [folder / "classes.txt"])
    found = [folder / name for name in listing.paths if name not in listing.again]
    twice = [f"the same file as {first}: {name}" for name, first in listing.again.items()]
    return found, [f"{folder}: {line}" for line in (*listing.lost, *listing.notes, *twice)]


def recordings(folder: Path) -> tuple[list[Path], list[str]]:
    """The ``.skeleton`` files in a folder, and a line if it has none."""
    from vtlvlm.errors import DataError
    from vtlvlm.skeleton.packing import skeleton_files

    try:
        return [folder / name for name in skeleton_files(folder).paths], []
    except DataError as error:
        return [], [f"{error}; `vtlvlm poses` makes them from videos: vtlvlm poses {folder} FOLDER"]


def recordings_of(paths: list[Path]) -> list[Path]:
    """The given paths; a path for each recording in place of an ``.npz`` file that can be read."""
    from vtlvlm.errors import DataError
    from vtlvlm.recognizers.recordings import packed_in, paths_in

    found: list[Path] = []
    for path in paths:
        try:
            found += paths_in(path) if packed_in(path) == path else [path]
        except DataError:  # the recogniser says so in its place
            found.append(path)
    return found


def require_model(model: Path) -> None:
    """Refuse a model that does not exist, before anything is read."""
    from vtlvlm.errors import UsageError

    if not model.exists():
        raise UsageError(f"{model}: no such model; `make demo` makes one, or name yours with --model")


def files_of(paths: list[Path], inside: Callable[[Path], tuple[list[Path], list[str]]]) -> tuple[list[Path], list[str]]:
    """The given files, and what ``inside`` finds in the given folders, in the order given; also its lines."""
    found = [inside(path) if path.is_dir() else ([path], []) for path in paths]
    return [file for files, _ in found for file in files], [line for _, lines in found for line in lines]


def run(args: argparse.Namespace) -> int:
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.system.text import shown

    if args.top < 1:
        raise UsageError(f"--top {args.top}: at least 1")
    layout = _layout_read(args.model)
    given = args.files if layout is None else recordings_of(args.files)
    files, words = files_of(given, videos if layout is None else recordings)
    if not files:
        also = f"; {'; '.join(words)}" if words else ""
        raise DataError("; ".join(words) if layout is not None else f"{', '.join(map(str, args.files))}: no video files in it{also}")
    require_model(args.model)

    from vtlvlm.recognizers.recognizer import ActionRecognizer, require_kind

    for file in files:
        require_kind(file, layout)  # before the model is loaded

    if args.srt is not None and layout is not None:
        raise UsageError("--srt: subtitles are for videos, and this model reads recordings of bodies; leave it out")
    names = {} if args.srt is None else names_of(files)
    asked = {"llava": args.llava, "dtype": args.dtype, "attention": args.attention, "quantization": args.quantization}
    computed = {name: None if value == "none" else value for name, value in asked.items() if value is not None}
    recognizer = ActionRecognizer.from_checkpoint(args.model, vtem=args.vtem, device=args.device, **computed)
    for line in words:
        print(f"vtlvlm: {shown(line)}", file=sys.stderr)
    if args.csv:
        from vtlvlm.recognizers.answers import COLUMNS, csv_line

        print(csv_line(COLUMNS))
    failed = 0
    with closing(recognizer.classify_each(files, top=args.top)) as results:
        for file, result in zip(files, results, strict=True):
            if isinstance(result, DataError):
                failed += 1
                print(f"vtlvlm: {shown(result)}", file=sys.stderr)
            elif args.srt is not None:
                write_subtitles(args.srt, names[file], result)
            say(file, result, args)
    if failed:
        print(f"vtlvlm: {failed} of {len(files)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def say(file: Path, result: Recognition | DataError, args: argparse.Namespace) -> None:
    """Print the result of a file as JSON, as CSV or for reading."""
    from vtlvlm.errors import DataError
    from vtlvlm.recognizers.answers import UNLIKE, as_dict, as_row, csv_line, is_unlike
    from vtlvlm.system.text import shown

    if args.csv:
        print(csv_line(as_row(result, file)))
    elif args.json:
        print(json_line({"file": str(file), "error": str(result)} if isinstance(result, DataError) else as_dict(result)))
    elif not isinstance(result, DataError):
        print(f"{shown(file)}  ({result.seconds:.2f} s)")
        if is_unlike(result):
            print(f"  {UNLIKE}; the nearest actions:")
        for name, p in result.actions:
            print(f"  {p:6.1%}  {bar(p)}  {shown(name)}")
    sys.stdout.flush()


def names_of(files: list[Path]) -> dict[Path, str]:
    """The name of each video's output files.

    Raises:
        UsageError: Two videos would have the same.
    """
    from vtlvlm.errors import UsageError

    seen: dict[str, Path] = {}
    for file in files:
        if (other := seen.setdefault(file.stem.casefold(), file)) != file:
            raise UsageError(f"{file} and {other}: their output would have one name; give them in two calls, with two folders")
    return {file: file.stem for file in files}


def write_subtitles(folder: Path, name: str, result: Recognition) -> None:
    """Write a video's subtitle into a folder."""
    from vtlvlm.recognizers.answers import subtitles
    from vtlvlm.system.files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.srt", subtitles(result))


def _layout_read(model: Path) -> str | None:
    if not model.exists():
        return None
    from vtlvlm.recognizers.loading import layout_read

    return layout_read(model)


def bar(probability: float) -> str:
    """A probability as a bar of 20 characters; blank for nan."""
    return f"{'█' * round(20 * probability) if probability == probability else '':20s}"


def json_line(value: object) -> str:
    """One line of ASCII JSON; nan and infinity become null."""
    return json.dumps(nan_as_none(value), allow_nan=False)
