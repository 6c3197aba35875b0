"""Write the skeletons of the people in videos, as .skeleton files like NTU's: 25 joints, up to two people, found by BlazePose.

An interrupted run continues. Each file has the name of its video and lies in the same sub-folder. It says where the joints are in the
picture and, in metres, around the hips; the distance from the camera is an estimate. Nothing is smoothed. A video without people, or one
that does not decode, is left out by name; poses.json in OUT lists all videos.

Needs ai-edge-litert (pip install 'vtlvlm[poses]'), and the two weight files that the package mediapipe carries:
pip install --no-deps mediapipe==0.10.21, or --weights with that wheel or a folder that holds them. No network is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vtlvlm.skeleton.blazepose import BlazePose, Pose, Weights

MANIFEST, PICTURES = "poses.json", "pictures"
LISTED = 20
"""Left-out videos that the terminal lists, at most"""
LONGER_SIDE = 1280
"""Pixels of a picture's longer side that the networks see, at most"""
SMALL = 150
"""Pixels of a body's length below which joints are uncertain. On twenty frames of a clip of 240 lines, made smaller, the median landmark
moved by 2 % of the body's radius at 157 pixels and by 12 % at 104; at 42 pixels the person was found in 11 frames."""
SHOWN, SHOWN_WIDTH = 4, 480
"""Frames of a picture to check, and pixels of each"""
SAVED_EVERY = 30.0
"""Seconds between saves of the list of videos"""


class Job(NamedTuple):
    """One video to read."""

    video: Path
    target: Path
    picture: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="a video, or a folder of videos in any tree")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write; an interrupted one is completed")
    parser.add_argument(
        "--weights", type=Path, metavar="PLACE", help="folder of the weight files, or mediapipe's wheel (default: installed)"
    )
    parser.add_argument("--people", type=int, default=2, choices=(1, 2), help="most people to follow (default: %(default)s)")
    parser.add_argument("--pictures", action="store_true", help="also draw the poses of four frames of each video into OUT/pictures")
    parser.add_argument("--workers", type=int, help="videos at once, each on one core (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Write the missing files."""
    from vtlvlm.errors import UsageError
    from vtlvlm.skeleton.blazepose import BlazePose, find_weights
    from vtlvlm.system.cpu import usable_cores
    from vtlvlm.system.files import tidied
    from vtlvlm.system.places import require_apart
    from vtlvlm.system.text import shown

    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers {args.workers}: at least 1")
    require_apart(args.output, [args.videos], "the skeletons")
    jobs = listed(args.videos, args.output, args.pictures)
    weights = find_weights(args.weights)
    BlazePose(weights)  # a missing package and damaged weights show before the work starts
    settings = {"weights": weights.digest, "people": args.people}
    done = begun(args.output, settings, [job.target for job in jobs.values()])
    tidied(args.output)
    sizes = {name: job.video.stat().st_size if job.video.is_file() else -1 for name, job in jobs.items()}
    todo = {name: job for name, job in jobs.items() if not finished(job, done.get(name), sizes[name])}
    kept = {name: done[name] for name in jobs if name in done and name not in todo}
    results = work(todo, kept, sizes, args.output, settings, weights, args.workers or usable_cores())
    left_out = {name: entry["left_out"] for name, entry in results.items() if "left_out" in entry}
    fresh = [results[name] for name in todo if name in results and "left_out" not in results[name]]
    frames, seconds = sum(entry["frames"] for entry in fresh), sum(entry["seconds"] for entry in fresh)
    speed = f", {frames / seconds:.1f} frames a second and core" if seconds else ""
    print(f"skeletons of {len(results) - len(left_out):,} videos in {args.output}{speed}")
    if small := sum(entry.get("pixels", SMALL) < SMALL for entry in results.values()):
        print(f"  {small:,} of them show people of less than {SMALL} pixels, whose joints are uncertain (pixels in {MANIFEST})")
    for name, reason in list(left_out.items())[:LISTED]:
        print(f"  left out: {shown(name)}: {shown(reason)}")
    if len(left_out) > LISTED:
        print(f"  and {len(left_out) - LISTED:,} more, named in {MANIFEST}")
    return 0 if len(left_out) < len(results) else 1


def listed(videos: Path, output: Path, pictures: bool) -> dict[str, Job]:
    """The videos by their paths below the folder, and the files to write for each.

    Raises:
        DataError: There is no video, or two would get the same file.
    """
    from vtlvlm.data.listing import VIDEO_ENDINGS, videos_in
    from vtlvlm.errors import DataError
    from vtlvlm.skeleton.reading import ENDING
    from vtlvlm.system.places import below

    if not videos.exists():
        raise DataError(f"{videos}: no such file or folder; name a video, or a folder of videos")
    root, names = (videos, videos_in(videos, []).paths) if videos.is_dir() else (videos.parent, [videos.name])
    if not names:
        raise DataError(f"{videos}: holds no video files ({' '.join(sorted(VIDEO_ENDINGS))})")
    jobs: dict[str, Job] = {}
    taken: dict[str, str] = {}
    for name in names:
        stem = name.rpartition(".")[0] if "." in name.rpartition("/")[2].lstrip(".") else name
        stem = stem.removesuffix("_rgb")
        if stem in taken:
            raise DataError(f"{videos}: {taken[stem]} and {name} would both be written to {stem}{ENDING}; rename one of them")
        taken[stem] = name
        picture = below(output, f"{PICTURES}/{stem}.jpg") if pictures else None
        jobs[name] = Job(root / name, below(output, stem + ENDING), picture)
    return jobs


def begun(output: Path, settings: dict[str, Any], targets: list[Path]) -> dict[str, dict[str, Any]]:
    """What an earlier run found in each video.

    Raises:
        UsageError: It had other settings.
        DataError: Its list cannot be read, or the files to write exist and no run has made them.
    """
    import json

    from vtlvlm.errors import DataError, UsageError

    file = output / MANIFEST
    if not file.is_file():
        if foreign := next((target for target in targets if target.exists()), None):
            raise DataError(f"{foreign}: exists, and no {MANIFEST} explains it; choose another folder")
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        before, videos = dict(record["settings"]), dict(record["videos"])
        if not all(isinstance(entry, dict) and {"bytes"} <= entry.keys() for entry in videos.values()):
            raise ValueError("an entry without a size")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not the list of a folder of poses; delete it, or choose another folder") from error
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(f"{output}: made with {name} {before.get(name)} and not {value}; choose another folder, or delete this one")
    return videos


def finished(job: Job, entry: dict[str, Any] | None, size: int) -> bool:
    """Whether a video of this size needs no further work."""
    if entry is None or entry["bytes"] != size:
        return False
    return "left_out" in entry or (job.target.is_file() and (job.picture is None or job.picture.is_file()))


def work(
    jobs: dict[str, Job],
    results: dict[str, dict[str, Any]],
    sizes: dict[str, int],
    output: Path,
    settings: dict[str, Any],
    weights: Weights,
    workers: int,
) -> dict[str, dict[str, Any]]:
    """Read all videos of ``jobs``, and return the entries of all videos. The list on the disk is saved now and then, and at the end."""
    import multiprocessing
    import time
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from tqdm import tqdm

    from vtlvlm.system.files import write_json

    saved = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(jobs) + len(results), initial=len(results), desc="poses", unit="video", disable=None)

    def note(name: str, entry: dict[str, Any]) -> None:
        nonlocal saved
        results[name] = {"bytes": sizes[name], **entry}
        bar.update()
        if time.monotonic() - saved > SAVED_EVERY:
            write_json(output / MANIFEST, {"settings": settings, "videos": results})
            saved = time.monotonic()

    write_json(output / MANIFEST, {"settings": settings, "videos": results})
    try:
        with bar:
            if workers == 1 or len(jobs) < 2:
                _begin(weights, settings["people"])
                for name, job in jobs.items():
                    note(name, read(job))
            else:
                context = multiprocessing.get_context("spawn")  # safe with threads of the caller
                pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin_worker, (weights, settings["people"]))
                try:
                    names = {pool.submit(read, job): name for name, job in jobs.items()}
                    for done in as_completed(names):
                        note(names[done], done.result())
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
    finally:
        write_json(output / MANIFEST, {"settings": settings, "videos": dict(sorted(results.items()))})
    return results


_pose: BlazePose | None = None


def _begin(weights: Weights, people: int) -> None:
    from vtlvlm.skeleton.blazepose import BlazePose

    global _pose
    _pose = BlazePose(weights, people)


def _begin_worker(weights: Weights, people: int) -> None:
    from vtlvlm.synth.dataset import start_worker

    start_worker()
    _begin(weights, people)


def read(job: Job) -> dict[str, Any]:
    """Read one video, write its files, and describe it, or say why it is ``left_out``.

    ``people`` counts those who were followed; someone who was lost and found again counts twice. ``pixels`` is the median length of a body.
    """
    import time

    import numpy as np

    from vtlvlm.data.container import VideoError
    from vtlvlm.system.files import write_text

    assert _pose is not None
    _pose.restart()
    start = time.perf_counter()
    bodies: list[list[Pose]] = []
    size = None
    try:
        for picture, factor in pictures_of(job.video):
            size = picture.shape[1], picture.shape[0], factor
            bodies.append(_pose(picture))
    except VideoError as error:
        return {"left_out": str(error).removeprefix(f"{job.video}: ")}
    people = {pose.person for found in bodies for pose in found}
    if size is None or not people:
        return {"left_out": f"no person found in its {len(bodies)} frames"}
    seconds = time.perf_counter() - start
    if job.picture is not None:
        draw(job, bodies)
    write_text(job.target, text(bodies, *size), follow=False)
    heights = [float(np.ptp(pose.pixels[:33], axis=0).max()) for found in bodies for pose in found]
    return {
        "frames": len(bodies),
        "frames_with_people": sum(bool(found) for found in bodies),
        "people": len(people),
        "pixels": round(float(np.median(heights))),
        "seconds": round(seconds, 3),
    }


def pictures_of(video: Path) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """All frames, upright and with square pixels, at most ``LONGER_SIDE`` wide or high, and the video's pixels for each of theirs."""
    from vtlvlm.data.container import opened, packets_of
    from vtlvlm.data.video import Cut, all_frames, linked, pixel_aspect, scaling, turns

    graph, graph_of, factor = None, None, 1.0
    with opened(video) as (container, stream):
        for frame in all_frames(video, packets_of(video, container, stream)):
            if graph is None or graph_of != (frame.width, frame.height, frame.format.name):
                graph_of = (frame.width, frame.height, frame.format.name)
                aspect = pixel_aspect(stream)
                longer = max(frame.width * aspect, frame.height)
                cut = Cut.of(frame.width, frame.height, aspect, size=min(LONGER_SIDE, round(longer)), crop="pad")
                factor = longer / max(cut.width, cut.height)
                scaled = (("scale", f"{cut.width}:{cut.height}:{scaling(frame)}"), ("format", "rgb24"), *turns(frame))
                graph = linked(frame, stream, *scaled)
            graph.push(frame)
            yield graph.pull().to_ndarray(), factor


def text(bodies: list[list[Pose]], width: int, height: int, factor: float) -> str:
    """The ``.skeleton`` text of the people in each frame. Depth pixels and orientations, which are not known, are 0."""
    import numpy as np

    from vtlvlm.skeleton.layouts import NTU25
    from vtlvlm.synth.skeleton import BodyLines, text_of

    frames = []
    for found in bodies:
        lines = []
        for pose in found:
            metres, pixels, visible = pose.joints(width, height)
            values = np.zeros((NTU25.num_joints, 11))
            values[:, :3], values[:, 5:7] = metres, factor * pixels
            trunk = metres[NTU25.index("spine_shoulder")] - metres[NTU25.index("spine_base")]
            lean = trunk / max(float(np.linalg.norm(trunk)), 1e-6)
            lines.append(BodyLines(pose.person, (lean[0], -lean[2]), values.tolist(), (1 + visible).tolist()))
        frames.append(lines)
    return text_of(frames)


def draw(job: Job, bodies: list[list[Pose]]) -> None:
    """Draw the people of four frames side by side: the left side of a body orange, the right side blue, the middle white."""
    from itertools import islice

    from PIL import Image, ImageDraw

    from vtlvlm.skeleton.blazepose import TO_NTU25
    from vtlvlm.skeleton.layouts import NTU25
    from vtlvlm.system.files import replacing

    assert job.picture is not None
    count = min(SHOWN, len(bodies))
    wanted = {round((place + 0.5) * len(bodies) / count - 0.5) for place in range(count)}
    tiles = []
    for number, (picture, _) in enumerate(islice(pictures_of(job.video), max(wanted) + 1)):
        if number not in wanted:
            continue
        image = Image.fromarray(picture)
        scale = SHOWN_WIDTH / image.width
        image = image.resize((SHOWN_WIDTH, max(1, round(image.height * scale))))
        pen = ImageDraw.Draw(image)
        for pose in bodies[number]:
            places = (TO_NTU25 @ pose.pixels[:33] * scale).tolist()
            for child, parent in NTU25.bones:
                name = NTU25.joints[child]
                colour = (255, 150, 40) if name.endswith("left") else (60, 160, 255) if name.endswith("right") else (255, 255, 255)
                pen.line([tuple(places[child]), tuple(places[parent])], fill=colour, width=3)
        tiles.append(image)
    strip = Image.new("RGB", (SHOWN_WIDTH * len(tiles), max(tile.height for tile in tiles)))
    for place, tile in enumerate(tiles):
        strip.paste(tile, (SHOWN_WIDTH * place, 0))
    with replacing(job.picture, follow=False) as temporary:
        strip.save(temporary, format="JPEG", quality=88)
