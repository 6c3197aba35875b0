"""Render NTU-like videos of a kinematic body, with skeletons. The data set needs no download.

With --motion FILE, the bodies play recorded movement instead, one clip a recording: real movement, drawn bodies. FILE is a packed .npz
(NW-UCLA's 20 joints, or NTU's 25), a .skeleton file, or a folder of .skeleton files with NTU names. The clips have the names of the
recordings; --subjects, --replications and --actions then choose among them, and each further camera adds 100 to the setup's number.

With --untrimmed N, N long videos of each person and camera: several actions one after the other, with idle time between them. truth.json
has the true segments, which `vtlvlm segment --truth` scores with. With --clips FOLDER, they are joined from real clips instead: those of
one person, setup and camera, with a held picture between two clips.

With --captions, also captions.csv: three true captions of each clip (action, hand, repetitions, prop, people, viewpoint), which
`vtlvlm fit --data.source.captions` learns from. A finished folder only gets this table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

TYPICAL = 16
"""People of the demo"""
LISTED = 5
"""Left-out recordings that the terminal lists, at most"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("output", type=Path, help="folder to write; an interrupted set in it is completed")
    parser.add_argument("--motion", type=Path, metavar="FILE", help="play these recorded skeletons instead of the project's own actions")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--subjects", type=int, help="number of people, from P001 (default: 10; with --motion: all)")
    parser.add_argument("--replications", type=int, help="repetitions of each action by each person (default: 1; with --motion: all)")
    parser.add_argument(
        "--actions", type=int, nargs="+", metavar="A", help="official NTU numbers, such as 8 9 27 (default: all that can be rendered)"
    )
    parser.add_argument(
        "--cameras",
        type=int,
        nargs="+",
        metavar="C",
        help="1 in front, 2 at -45 and 3 at +45 degrees (default: 1 2 3; with --motion: 1, where the recording camera stood)",
    )
    parser.add_argument("--untrimmed", type=int, metavar="N", help="render N long videos of each person instead, with their true segments")
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="with --untrimmed: join these clips instead of rendering any")
    parser.add_argument(
        "--people",
        type=int,
        nargs="+",
        metavar="P",
        help="with --untrimmed: numbers of the people (default: those of 16 who test in X-Sub; with --clips: all)",
    )
    parser.add_argument("--parts", type=int, help="with --untrimmed: actions in a video; 0 for idle people (default: 8)")
    parser.add_argument(
        "--unlisted", type=int, nargs="+", metavar="A", help="with --untrimmed: actions that occur, but are not among those to be found"
    )
    parser.add_argument("--captions", action="store_true", help="also write captions.csv, with three true captions of each clip")
    parser.add_argument("--workers", type=int, help="processes; their number does not change the videos (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Render the missing clips."""
    from vtlvlm.errors import UsageError
    from vtlvlm.synth.captions import FILE, clips_of, write_captions
    from vtlvlm.synth.dataset import generate
    from vtlvlm.system.text import shown

    if args.untrimmed is not None:
        return _untrimmed(args)
    for name in ("people", "parts", "unlisted", "clips"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name}: only with --untrimmed N; leave it out")
    if args.captions and args.motion is not None:
        raise UsageError("--captions: what happens in recorded movement is not known; leave it or --motion out")
    if args.motion is None:
        manifest = generate(
            args.output,
            seed=args.seed,
            subjects=10 if args.subjects is None else args.subjects,
            replications=1 if args.replications is None else args.replications,
            actions=args.actions,
            cameras=(1, 2, 3) if args.cameras is None else args.cameras,
            workers=args.workers,
        )
    else:
        from vtlvlm.synth.recorded import play

        manifest = play(
            args.output,
            args.motion,
            seed=args.seed,
            subjects=args.subjects,
            replications=args.replications,
            actions=args.actions,
            cameras=(1,) if args.cameras is None else args.cameras,
            workers=args.workers,
        )
    print(f"{len(manifest['clips'])} clips of {len(manifest['classes'])} actions in {args.output}")
    if args.captions:
        print(f"{write_captions(args.output, clips_of(manifest))} captions in {args.output / FILE}")
    left_out = manifest.get("left_out", {})
    for name, reason in list(left_out.items())[:LISTED]:
        print(f"  left out: {name}: {shown(reason)}")
    if len(left_out) > LISTED:
        print(f"  and {len(left_out) - LISTED:,} more, named in synth.json")
    return 0


def _untrimmed(args: argparse.Namespace) -> int:
    """Render long videos."""
    from vtlvlm.data.ntu import PROTOCOLS
    from vtlvlm.errors import UsageError
    from vtlvlm.synth.untrimmed import generate_untrimmed

    for name in ("motion", "subjects", "replications", "captions"):
        if getattr(args, name) not in (None, False):
            raise UsageError(f"--{name} is not for --untrimmed; leave it out")
    if args.clips is not None:
        return _joined(args)
    people = [one for one in range(1, TYPICAL + 1) if one not in PROTOCOLS["xsub60"].train_ids] if args.people is None else args.people
    manifest = generate_untrimmed(
        args.output,
        people=people,
        seed=args.seed,
        films=args.untrimmed,
        actions=args.actions,
        unlisted=args.unlisted or (),
        parts=8 if args.parts is None else args.parts,
        cameras=(1,) if args.cameras is None else args.cameras,
        workers=args.workers,
    )
    seconds = sum(one["frames"] for one in manifest["videos"]) / manifest["fps"]
    print(f"{len(manifest['videos'])} videos of {len(people)} people, {seconds / 60:.1f} minutes, in {args.output}")
    return 0


def _joined(args: argparse.Namespace) -> int:
    """Join clips into long videos."""
    from vtlvlm.errors import UsageError
    from vtlvlm.synth.joining import join
    from vtlvlm.system.places import require_apart

    if args.cameras is not None:
        raise UsageError("--cameras is not for --clips, which joins those of each camera; leave it out")
    if not args.clips.is_dir():
        raise UsageError(f"--clips {args.clips}: no such folder")
    require_apart(args.output, [args.clips], "the folder of films")
    manifest = join(
        args.output,
        args.clips,
        people=args.people,
        seed=args.seed,
        films=args.untrimmed,
        actions=args.actions,
        unlisted=args.unlisted or (),
        parts=8 if args.parts is None else args.parts,
        workers=args.workers,
    )
    seconds = sum(one["frames"] / one["fps"] for one in manifest["videos"])
    print(f"{len(manifest['videos'])} videos, {seconds / 60:.1f} minutes, in {args.output}")
    return 0
