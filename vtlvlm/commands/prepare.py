"""Check a folder of videos, write its index, and report its content and its problems; or pack a folder of .skeleton files.

The command opens new and changed videos and counts their frames. It keeps the results, so the next start is fast and an interrupted
one continues. The exit code is 1 if no clip can be used.

With --transcode DIR, NTU-120 becomes about 29 GB of 256-pixel H.264. All other commands can read these copies instead of the source.

A folder without videos that holds .skeleton files is read into one folder of recordings, which the skeleton networks train from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtlvlm.data.index import ClipIndex
    from vtlvlm.data.split import Split


LISTED = 20
"""Left-out clips that the terminal lists, at most"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="folder of videos or of .skeleton files: NTU names in any tree, or a folder for each class"
    )
    parser.add_argument("--protocol", help="show this split only: xsub60, xview60, xsub120, xset120, csv or group (default: all that fit)")
    parser.add_argument("--csv", type=Path, help="table path,label[,split,group] of the clips, paths relative to ROOT")
    parser.add_argument("--classes", type=Path, help="lines such as 'A008 sitting down' for NTU names (default: ROOT/classes.txt)")
    parser.add_argument("--validation", type=float, default=0.0, help="share of the training groups to show as validation (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the validation choice (default: 0)")
    parser.add_argument("--exclude-missing-skeletons", action="store_true", help="leave out the 535 clips without a skeleton")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--fast", action="store_true", help="read file names only, open no video")
    depth.add_argument("--verify", action="store_true", help="decode every frame of every clip")
    parser.add_argument(
        "--transcode", type=Path, metavar="DIR", help="also write small copies of all usable clips to DIR; they decode ten times faster"
    )
    parser.add_argument("--side", type=int, default=256, help="largest shorter side of the copies in pixels (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="videos to open at once (default: one per core)")
    parser.add_argument(
        "--output",
        type=Path,
        help="index file (default: ROOT/.vtlvlm/index.parquet; the user's cache folder if ROOT is read-only); of skeletons, the folder of "
        "recordings (default: ROOT/.vtlvlm/skeletons)",
    )


def run(args: argparse.Namespace) -> int:
    from vtlvlm.data.forms import table_file
    from vtlvlm.data.index import ClipIndex, default_store, report_file
    from vtlvlm.data.split import split
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.system.files import write_text
    from vtlvlm.system.text import shown

    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers {args.workers}: at least 1")
    if args.transcode is not None and args.fast:
        raise UsageError("--transcode opens every clip: leave --fast out")
    if args.transcode is not None and args.side < 32:
        raise UsageError(f"--side {args.side}: copies have at least 32 pixels a side")
    if holds_skeletons(args.root):
        return pack_skeletons(args)
    store = args.output or default_store(args.root)
    table = None if args.csv is None else table_file(args.root, args.csv)
    if args.transcode is not None:
        from vtlvlm.data.transcode import require_place

        require_place(args.transcode, args.root, [args.classes, table])
    index = ClipIndex.scan(
        args.root,
        classes=args.classes,
        csv=args.csv,
        fast=args.fast,
        verify=args.verify,
        again=True,
        workers=args.workers,
        store=store,
    )
    splits, undivided = [], []
    for protocol in [args.protocol] if args.protocol else fitting(index):
        options = {"validation": args.validation, "seed": args.seed, "exclude_missing_skeletons": args.exclude_missing_skeletons}
        try:
            splits.append(split(index, protocol, **options))
        except DataError as error:  # a single clip, for example, cannot be divided; the report is still printed
            if args.protocol:
                raise
            undivided.append(f"not divided: {shown(error)}")
    page = report_file(store)
    print("\n".join([*report(index, splits, LISTED), *undivided]))
    if store.is_file():  # otherwise a warning has said that it could not be written
        print(f"index: {store}")
    try:
        write_text(page, "\n".join([*report(index, splits), *undivided]) + "\n", follow=False)
        print(f"this report, with all left-out clips: {page}")
    except OSError as error:
        print(f"{page}: the report cannot be written ({error.strerror})")
    if args.transcode is not None:
        return make_copies(index, store, table, args)
    return 0


def holds_skeletons(root: Path) -> bool:
    """Whether a folder holds ``.skeleton`` files and no video."""
    from vtlvlm.skeleton.reading import ENDING

    if not root.is_dir() or next(root.rglob(f"*{ENDING}"), None) is None:
        return False
    from vtlvlm.data.listing import videos_in

    return not videos_in(root).paths


def pack_skeletons(args: argparse.Namespace) -> int:
    """Read ``.skeleton`` files into a folder of recordings, compare the recordings that are there with their digests, and report."""
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.skeleton.packing import pack
    from vtlvlm.skeleton.source import SkeletonSource
    from vtlvlm.system.files import write_text
    from vtlvlm.system.text import shown

    if args.transcode is not None or args.fast:
        raise UsageError(f"{args.root}: holds no videos, but skeletons: leave --transcode and --fast out")
    labels = args.csv or args.classes
    source = SkeletonSource(str(args.root), labels=None if labels is None else str(labels), validation=args.validation)
    recordings = pack(args.root, args.output, verify=True, workers=args.workers)
    index = source.index(recordings)
    splits, undivided = [], []
    for protocol in [args.protocol] if args.protocol else fitting(index):
        try:
            splits.append(replace(source, protocol=protocol).split(index, args.seed))
        except DataError as error:
            if args.protocol:
                raise
            undivided.append(f"not divided: {shown(error)}")
    two = int((recordings.bodies == 2).sum())
    bodies = f"{len(recordings) - two:,} recordings of one body, {two:,} of two; joints: {recordings.layout.name}"
    print("\n".join([*report(index, splits, LISTED), *undivided, bodies]))
    write_text(recordings.source / "report.txt", "\n".join([*report(index, splits), *undivided, bodies]) + "\n", follow=False)
    print(f"recordings: {recordings.source} (--data.source.root); this report, with all left-out clips: {recordings.source / 'report.txt'}")
    return 0


def make_copies(index: ClipIndex, store: Path, table: Path | None, args: argparse.Namespace) -> int:
    """Transcode the usable clips. The index records the clips that turn out to be damaged and leaves them out from then on."""
    from vtlvlm.data.transcode import TABLE, transcode
    from vtlvlm.system.text import shown

    failed = transcode(index, args.transcode, classes=args.classes, table=table, side=args.side, workers=args.workers)
    for path, reason in failed.items():
        row = int((index.path == path).argmax())
        index.damage[row], index.checked[row] = reason, 2
        print(f"  left out: {shown(path)}: {shown(reason)}")
    if failed:
        index.write(store)
    labels = f" --data.source.labels {args.transcode / TABLE}" if index.layout == "csv" else ""
    print(f"{len(index.usable):,} copies: use --data.source.root {args.transcode}{labels} from now on")
    return 0


def fitting(index: ClipIndex) -> list[str]:
    """The protocols that the data can follow."""
    if index.layout in ("csv", "folders"):
        return ["csv" if (index.split != "").any() else "group"]
    if index.official and len(index.classes) > 60:
        return ["xsub60", "xview60", "xsub120", "xset120"]
    return ["xsub60", "xview60"] if index.official else ["xsub60", "xview60", "xset120"]


def report(index: ClipIndex, splits: list[Split], most: int | None = None) -> Iterator[str]:
    """Lines of the report: totals, counts per class and group, splits, left-out clips with reasons (at most ``most``; None: all)."""
    import numpy as np

    from vtlvlm.data.listing import some
    from vtlvlm.data.ntu import PROTOCOLS
    from vtlvlm.data.twins import across
    from vtlvlm.system.text import shown

    usable = index.usable
    kinds = {"ntu": "NTU names", "folders": "a folder for each class", "csv": "a CSV table"}
    yield f"{shown(index.root)}: {len(index):,} clips ({kinds[index.layout]}), {len(usable):,} usable, {len(index.classes)} classes"
    frames = index.frames[usable][index.frames[usable] > 0]
    pictures = bool((index.width[usable] > 0).any())
    if len(frames):
        hours = np.nansum(index.duration[usable]) / 3600
        low, middle, high = np.percentile(frames, [0, 50, 100]).astype(int)
        size = f"; {hours:.2f} hours, {index.size[usable].sum() / 1e9:.2f} GB" if pictures else f"; {frames.sum():,} frames"
        yield f"frames a clip: {low} to {high}, median {middle}{size}"
    if len(frames) and pictures:
        sizes, counts = np.unique(np.stack([index.width[usable], index.height[usable]]), axis=1, return_counts=True)
        common = sizes[:, counts.argmax()]
        others = f" (and {len(counts) - 1} other sizes)" if len(counts) > 1 else ""
        yield f"picture: {common[0]} x {common[1]}{others}, {np.median(index.fps[usable]):g} frames a second"
    elif not len(frames):
        yield "frames: not counted (names only)"
    yield ""
    counts = np.bincount(index.label[usable], minlength=len(index.classes))
    yield from _table("class", dict(zip(index.classes, counts.tolist(), strict=True)))
    for column in ("subject", "camera", "setup") if index.layout == "ntu" else ("group",):
        values, counts = np.unique(getattr(index, column)[usable].astype(str if column == "group" else int), return_counts=True)
        if len(values) > 1 or str(values[0]):
            yield from _table(column, dict(zip(values.tolist(), counts.tolist(), strict=True)))
    yield f"{'protocol':32s} {'train':>8s} {'val':>8s} {'test':>8s}"
    for sides in splits:
        key = sides.description["protocol"]
        title = f"{key} {PROTOCOLS[key].title}" if key in PROTOCOLS else shown(key)
        yield f"{title:32s} {len(sides.train):8,} {len(sides.val):8,} {len(sides.test):8,}"
    for sides in splits:
        if pairs := [f"{index.path[one]} = {index.path[other]}" for one, other in across(index, sides)]:
            yield f"the same content on the training and the test side of {sides.description['protocol']}: {some(pairs)}"
        if len(sides.train) and len(unseen := np.setdiff1d(index.label[sides.test], index.label[np.union1d(sides.train, sides.val)])):
            yield f"classes of {sides.description['protocol']} that have test clips only: {some([index.classes[k] for k in unseen])}"
    yield ""
    peculiar = list(_peculiar(index))
    yield from [*peculiar, ""] if peculiar else []
    problem = index.problem
    excluded = np.flatnonzero(problem != "")
    if len(excluded):
        yield f"left out: {len(excluded):,}"
        yield from (f"  {shown(index.path[row])}: {shown(problem[row])}" for row in excluded[:most])
        if most is not None and len(excluded) > most:
            yield f"  and {len(excluded) - most:,} more"
    else:
        yield "left out: none"
    yield from map(shown, (*index.lost, *index.notes))


def _peculiar(index: ClipIndex) -> Iterator[str]:
    """Lines about unusual usable clips and about missing official clips."""
    import numpy as np

    from vtlvlm.data.listing import some
    from vtlvlm.data.twins import twins

    copies: dict[bool, list[str]] = {True: [], False: []}
    for one, other in twins(index):
        copies[bool(index.label[one] == index.label[other])].append(f"{index.path[one]} = {index.path[other]}")
    for same_label, pairs in copies.items():
        if pairs:
            yield f"the same content {'twice' if same_label else 'under two labels'}: {some(pairs)}"
    for title, rows in (
        ("stored turned, shown upright", index.usable[index.rotation[index.usable] > 0]),
        ("variable frame rate, sampled by frame number", index.usable[index.variable[index.usable]]),
    ):
        if len(rows):
            yield f"{title}: {some([str(index.path[row]) for row in rows])}"
    if index.official:
        from vtlvlm.data.ntu import clip_name, clip_numbers, missing_skeletons, official_clips

        actions = len(index.classes)
        known = index.label >= 0
        columns = [getattr(index, name)[known] for name in ("setup", "camera", "subject", "replication")]
        present = clip_numbers(*columns, index.label[known] + 1)
        wanted = official_clips(actions)
        missing = wanted[~np.isin(wanted, present)]
        title = f"of the {len(wanted):,} official clips of NTU RGB+D {actions}"
        if not len(missing):
            yield f"{title} none is missing"
        else:
            gone = np.setdiff1d(wanted // 1000**4, present // 1000**4)
            whole = f", with all of setup {', '.join(map(str, gone))}" if len(gone) else ""
            yield f"{title} missing{whole}: {some([clip_name(number) for number in missing[:5]], len(missing))}"
        others = int((~np.isin(present, wanted)).sum())
        if others:
            yield f"{others:,} clips have names that are not in the official list"
        lacking = int(np.isin(index.name[index.usable].astype(str), list(missing_skeletons())).sum())
        skeletons = len(index) and str(index.path[0]).endswith(".skeleton")
        fate = "the splits above leave them out" if skeletons else "they are kept unless exclude_missing_skeletons is set"
        yield f"{lacking:,} clips lack a {'complete ' if skeletons else ''}skeleton; {fate}"


def _table(title: str, counts: dict[Any, int]) -> Iterator[str]:
    """Counts in columns, in the given order."""
    from vtlvlm.system.text import shown

    cells = [f"{shown(name, 60)} {count:,}" for name, count in counts.items()]
    width = max(map(len, cells)) + 3
    columns = max(1, 120 // width)
    yield f"clips for each {title} ({len(cells)})"
    for start in range(0, len(cells), columns):
        yield "  " + "".join(f"{cell:{width}s}" for cell in cells[start : start + columns]).rstrip()
    yield ""
