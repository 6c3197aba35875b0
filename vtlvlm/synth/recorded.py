"""Rendered sets of recorded movement: reads recordings of skeletons, names their clips, and renders them.

A clip is named after its recording: the same camera, person, replication and action. Camera 1 of a setup stands where the recording camera
stood. More cameras make further clips of the same recording. They are other placements of the rig, so 100 is added to the setup's number
for camera 2 and 200 for camera 3; the name's C stays the recording's, and X-View leaves whole recording cameras out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vtlvlm.data import ntu
from vtlvlm.data.ntu import ClipName
from vtlvlm.errors import DataError, UsageError, naming
from vtlvlm.skeleton.layouts import KINECT20, NTU25
from vtlvlm.skeleton.packed import META, open_recordings
from vtlvlm.skeleton.reading import ENDING, read_skeleton
from vtlvlm.synth.body import Array
from vtlvlm.synth.dataset import EXTRA, both_made, film, produce, require_settings
from vtlvlm.synth.motion import Recording, Rig, bone_lengths, is_mirrored, performed
from vtlvlm.synth.people import Person
from vtlvlm.synth.performance import Performance
from vtlvlm.synth.scene import ANGLES, FPS, HEIGHT, WIDTH, Camera, Setup, setup_of
from vtlvlm.system.places import require_apart

MOTION_VERSION = 2
"""Increased whenever the same recordings and settings give other videos."""
BACK = 0.8
"""Metres by which the rig stands farther away than for a rendered action, since people walk around."""
OTHER_RIG = 100
"""Added to the setup's number for each further camera."""
ENOUGH = 60
"""Recordings, at most, that are read to find a camera's floor or the lengths of a person's bones."""

Held = NDArray[np.float32] | Path
"""A packed recording (M, F, V, 3 or more), or the file to read it from"""


class Source(NamedTuple):
    """Recordings of skeletons on the disk."""

    held: dict[ClipName, Held]
    classes: Mapping[int, str]
    """Names of the actions by their numbers; NTU's if there are none"""
    digest: str
    """Stands for the content"""


def source_of(path: Path) -> Source:
    """Open a packed file (``.npz``) or folder, a ``.skeleton`` file, or a folder of ``.skeleton`` files.

    Raises:
        DataError: It holds no recordings that can be played.
    """
    if path.is_dir() and not (path / META).is_file():
        return _files(path, sorted(file for file in path.rglob(f"*{ENDING}") if file.is_file()))
    if path.is_file() and path.suffix == ENDING:
        return _files(path, [path])
    packed = open_recordings(path)
    if packed.layout not in (NTU25, KINECT20):
        raise DataError(f"{path}: has joints of {packed.layout.name}; recordings of {NTU25.name} and {KINECT20.name} can be played")
    digest = blake2b("".join(packed.paths).encode() + packed.frames.tobytes(), digest_size=8)
    if path.is_file():
        digest.update(packed.parts[0].tobytes())
    held: dict[ClipName, Held] = {}
    for row, name in enumerate(map(ClipName.parse, packed.paths)):
        if name in held:
            raise DataError(f"{path}: holds two recordings {name}; keep one of them")
        held[name] = packed.values(row)
    return Source(dict(sorted(held.items())), packed.classes or {}, digest.hexdigest())


def _files(path: Path, files: Sequence[Path]) -> Source:
    if not files:
        raise DataError(f"{path}: holds no {ENDING} files; name a packed .npz, a {ENDING} file or a folder of them")
    held: dict[ClipName, Held] = {}
    for file in files:
        name = ClipName.parse(file)
        if name in held:
            raise DataError(f"{file}: the recording {name} is also {held[name]}; keep one of them")
        held[name] = file
    digest = blake2b("".join(f"{name} {file.stat().st_size}\n" for name, file in zip(held, files, strict=True)).encode(), digest_size=8)
    return Source(dict(sorted(held.items())), {}, digest.hexdigest())


def loaded(name: ClipName, held: Held) -> Recording:
    """The recording, with NaN for joints at the camera itself: unknown ones are stored as zeros.

    A second body that is there in less than half of the frames is left out.

    Raises:
        DataError: It cannot be played.
    """
    joints = (read_skeleton(held).joints if isinstance(held, Path) else held[..., :3]).astype(np.float64)
    bodies = np.where((joints == 0).all(-1, keepdims=True) | ~np.isfinite(joints), np.nan, joints)
    there = np.isfinite(bodies).all(-1).any(-1).mean(1)
    recording = Recording(name, bodies[[body == 0 or share >= 0.5 for body, share in enumerate(there)]])
    with naming(held if isinstance(held, Path) else str(name)):
        recording.require_joints()
    return recording


@dataclass(frozen=True)
class MotionClip:
    """One view of one recording, with all that a worker process needs."""

    seed: int
    view: int
    taken: ClipName
    held: Held
    rig: Rig
    lengths: Array | None
    """(25,) metres of the person's bones; None for those of the recording"""
    frames: int
    bodies: int

    @property
    def name(self) -> str:
        """NTU's name."""
        return str(replace(self.taken, setup=self.taken.setup + OTHER_RIG * (self.view - 1)))

    @property
    def room(self) -> Setup:
        """The room. It depends on the person and a coin, not on the camera."""
        coin = int(np.random.default_rng([self.seed, 6, self.taken.subject, self.taken.replication, self.taken.action]).integers(2))
        setup = Setup.of(self.seed, setup_of(self.taken.subject, coin))
        return replace(setup, distance=round(setup.distance + BACK, 3))

    def performance(self) -> Performance:
        """The performance, the same for all views of the recording."""
        subject = self.taken.subject
        people = (Person.of(self.seed, subject), Person.of(self.seed, EXTRA + subject - 1))
        return performed(loaded(self.taken, self.held), self.rig, people[: self.bodies], self.lengths)

    def make(self, root: Path) -> None:
        """Write both files, each whole or not at all, the skeleton last."""
        rng = np.random.default_rng([self.seed, 7, self.view, *asdict(self.taken).values()])
        film(root, self.name, self.performance(), self.room, Camera.of(self.room, self.view), rng)

    def made(self, root: Path) -> bool:
        """Whether both files exist."""
        return both_made(self.name, root)

    def describe(self) -> dict[str, Any]:
        """The clip's line in the manifest."""
        return {"name": self.name, "recording": str(self.taken), "room": self.room.number, "frames": self.frames, "bodies": self.bodies}


def play(
    output: Path,
    recordings: Path,
    *,
    seed: int = 0,
    subjects: int | None = None,
    replications: int | None = None,
    actions: Sequence[int] | None = None,
    cameras: Sequence[int] = (1,),
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Render recorded movement as a set of NTU-like clips, or its missing clips.

    Args:
        output: folder to write, as in :func:`vtlvlm.synth.generate`.
        recordings: a packed ``.npz`` or folder, a ``.skeleton`` file, or a folder of such files with NTU names.
        seed: of bodies, clothes, rooms and the sensor's noise; at least 0. The clips do not depend on the number of workers.
        subjects: the recordings of the people up to this number; None for all.
        replications: the recordings up to this replication; None for all.
        actions: the recordings of these actions; None for all.
        cameras: of 1 (where the recording camera stood), 2 (-45 degrees from it) and 3 (+45 degrees).
        workers: processes; None for one per usable core.
        progress: whether to show progress bars.

    Returns:
        The manifest. ``left_out`` says why recordings of a folder cannot be played.

    Raises:
        UsageError: A setting is out of range, or the folder was made with other settings.
        DataError: There is no recording to play, or the output folder holds other files under the same names.
    """
    filmed = sorted(set(cameras))
    require_settings(seed, {"subjects": subjects, "replications": replications}, filmed, workers)
    source = source_of(Path(recordings))
    require_apart(output, [recordings], "the rendered set")
    chosen = [
        name
        for name in source.held
        if (subjects is None or name.subject <= subjects)
        and (replications is None or name.replication <= replications)
        and (actions is None or name.action in actions)
    ]
    if not chosen:
        raise UsageError(f"{recordings}: none of its {len(source.held)} recordings is chosen; it has {_spans(source.held)}")
    if len(filmed) > 1 and max(name.setup for name in chosen) >= OTHER_RIG:
        raise UsageError(f"{recordings}: further cameras add {OTHER_RIG} to the setup's number: give --cameras 1, or setups below it")
    rigs, bones, sizes, left_out = _surveyed(source, chosen, progress)
    clips = [
        MotionClip(seed, view, name, source.held[name], rigs[name.setup, name.camera], bones.get(name.subject), *sizes[name])
        for name in sizes
        for view in filmed
    ]
    if not clips:
        raise DataError(f"{recordings}: none of its recordings can be played, the first because {next(iter(left_out.values()))}")
    settings = {
        "motion": source.digest, "version": MOTION_VERSION, "seed": seed, "subjects": subjects, "replications": replications,
        "actions": None if actions is None else sorted(set(actions)), "cameras": filmed, "width": WIDTH, "height": HEIGHT, "fps": FPS,
    }  # fmt: skip
    details = {
        "movement": "recorded; bodies, clothes and rooms are drawn",
        "camera_angles": {f"S{OTHER_RIG * (view - 1):03d} and more": ANGLES[view] for view in filmed},
        "recording_cameras": {
            f"S{setup:03d}C{camera:03d}": {"mirrored": rig.mirrored, "floor": np.round(rig.upright[1], 4).tolist()}
            for (setup, camera), rig in sorted(rigs.items())
        },
        "left_out": {str(name): reason for name, reason in left_out.items()},
    }
    official = dict(enumerate(ntu.ACTIONS, 1))
    classes = {action: (source.classes or official).get(action, f"action {action}") for action in sorted({name.action for name in sizes})}
    return produce(Path(output), settings, sorted(clips, key=lambda clip: clip.name), classes, details, workers, progress)


class Survey(NamedTuple):
    """What is known of recordings before they are rendered."""

    rigs: dict[tuple[int, int], Rig]
    """By setup and camera"""
    bones: dict[int, Array]
    """Subject → (25,) metres of the bones"""
    sizes: dict[ClipName, tuple[int, int]]
    """Frames and bodies of each recording that can be played"""
    left_out: dict[ClipName, str]
    """Why others cannot"""


def _surveyed(source: Source, chosen: Sequence[ClipName], progress: bool) -> Survey:
    """Read the chosen recordings, and for each of their cameras and people up to ``ENOUGH`` that are spread over all there are.

    A camera's floor and a person's bones so depend on the file and not on the choice. A bone's length is the median over recordings of the
    median over frames: a Kinect that sees a person from the side gives limbs of other lengths.
    """
    cameras = {(name.setup, name.camera) for name in chosen}
    people = {name.subject for name in chosen}
    by_camera: dict[tuple[int, int], list[ClipName]] = defaultdict(list)
    by_person: dict[int, list[ClipName]] = defaultdict(list)
    for name in source.held:
        if (name.setup, name.camera) in cameras:
            by_camera[name.setup, name.camera].append(name)
        if name.subject in people:
            by_person[name.subject].append(name)
    for_floor, for_bones = (
        {name for names in group.values() for name in names[:: -(-len(names) // ENOUGH)]} for group in (by_camera, by_person)
    )
    kept: dict[tuple[int, int], list[Recording]] = {camera: [] for camera in cameras}
    lengths: dict[int, list[Array]] = {subject: [] for subject in people}
    sizes: dict[ClipName, tuple[int, int]] = {}
    left_out: dict[ClipName, str] = {}
    wanted = set(chosen)
    for name in tqdm(sorted(wanted | for_floor | for_bones), desc="reading", unit="recording", disable=not progress):
        try:
            recording = loaded(name, source.held[name])
        except DataError as error:
            left_out.update({name: str(error)} if name in wanted else {})
            continue
        if name in for_floor:
            kept[name.setup, name.camera].append(recording)
        if name in for_bones or (name in wanted and not lengths[name.subject]):
            lengths[name.subject].append(bone_lengths(recording.world(mirrored=False)[0]))
        if name in wanted:
            sizes[name] = (recording.joints.shape[1], recording.joints.shape[0])
    mirrored = is_mirrored(recording for recordings in kept.values() for recording in recordings)
    rigs = {camera: Rig.of(recordings, mirrored) for camera, recordings in kept.items()}
    return Survey(rigs, {subject: np.median(own, axis=0) for subject, own in lengths.items() if own}, sizes, left_out)


def _spans(names: Iterable[ClipName]) -> str:
    columns = {"people": "subject", "replications": "replication", "actions": "action"}
    spans = {title: sorted({getattr(name, column) for name in names}) for title, column in columns.items()}
    return ", ".join(f"{title} {values[0]} to {values[-1]}" for title, values in spans.items())
