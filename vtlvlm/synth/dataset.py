"""The whole data set: the list of clips, their parallel rendering, and the manifest."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vtlvlm.data import ntu
from vtlvlm.errors import DataError, UsageError
from vtlvlm.synth.actions import ACTIONS
from vtlvlm.synth.people import Person
from vtlvlm.synth.performance import Performance, perform
from vtlvlm.synth.render import encode, frames
from vtlvlm.synth.scene import ANGLES, FPS, HEIGHT, WIDTH, Camera, Setup, setup_of
from vtlvlm.synth.skeleton import skeleton_text
from vtlvlm.system.cpu import usable_cores
from vtlvlm.system.files import replacing, tidied

SYNTH_VERSION = 2
"""Increased whenever the same settings give other videos."""
VIDEOS, SKELETONS, CLASSES, MANIFEST, STARTED = "nturgb+d_rgb", "nturgb+d_skeletons", "classes.txt", "synth.json", ".synth-started.json"
MAX_SUBJECTS = 100
EXTRA = 500
"""Number of subject 1's partner in an action for two. Such partners are never subjects."""


@dataclass(frozen=True, order=True)
class ClipSpec:
    """One clip to render. These values determine it completely."""

    seed: int
    setup: int
    camera: int
    subject: int
    replication: int
    action: int

    @property
    def name(self) -> str:
        """NTU's name, such as S001C001P001R001A008."""
        return f"S{self.setup:03d}C{self.camera:03d}P{self.subject:03d}R{self.replication:03d}A{self.action:03d}"

    def performance(self) -> Performance:
        """The performance, the same for all cameras."""
        rng = np.random.default_rng([self.seed, 4, self.setup, self.subject, self.replication, self.action])
        return perform(ACTIONS[self.action], Person.of(self.seed, self.subject), Person.of(self.seed, EXTRA + self.subject - 1), rng)

    def make(self, root: Path) -> None:
        """Write both files, each whole or not at all, the skeleton last."""
        performance, setup = self.performance(), Setup.of(self.seed, self.setup)
        camera = Camera.of(setup, self.camera)
        rng = np.random.default_rng([self.seed, 5, self.setup, self.camera, self.subject, self.replication, self.action])
        film(root, self.name, performance, setup, camera, rng)

    def made(self, root: Path) -> bool:
        """Whether both files exist."""
        return both_made(self.name, root)

    def describe(self) -> dict[str, Any]:
        """The clip's line in the manifest."""
        return described(self.name, self.performance())


def film(root: Path, name: str, performance: Performance, setup: Setup, camera: Camera, rng: np.random.Generator) -> None:
    """Write a clip's video and its skeletons, each whole or not at all, the skeletons last."""
    video, skeleton = paths_of(name, root)
    with replacing(video, follow=False, tidy=False) as part:
        encode(part, frames(performance, setup, camera, rng))
    write(skeleton, skeleton_text(performance, camera))


def both_made(name: str, root: Path) -> bool:
    """Whether a clip's video and skeletons exist."""
    return all(path.is_file() and path.stat().st_size for path in paths_of(name, root))


def described(name: str, performance: Performance) -> dict[str, Any]:
    """A clip's line in the manifest."""
    return {
        "name": name,
        "frames": performance.timing.frames,
        "motion_start": performance.timing.start,
        "motion_frames": performance.timing.duration,
        "bodies": len(performance.people),
    }


def plan(seed: int, subjects: int, replications: int, actions: Sequence[int], cameras: Sequence[int]) -> list[ClipSpec]:
    """All clips, sorted by name."""
    clips = []
    for subject in range(1, subjects + 1):
        for replication in range(1, replications + 1):
            for action in actions:
                # independent of the other settings, so that a larger set contains a smaller one
                coin = int(np.random.default_rng([seed, 6, subject, replication, action]).integers(2))
                clips += [ClipSpec(seed, setup_of(subject, coin), camera, subject, replication, action) for camera in cameras]
    return sorted(clips, key=lambda clip: clip.name)


def generate(
    output: Path,
    *,
    seed: int = 0,
    subjects: int = 10,
    replications: int = 1,
    actions: Sequence[int] | None = None,
    cameras: Sequence[int] = (1, 2, 3),
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Render a set of NTU-like clips, or its missing clips.

    Args:
        output: folder to write. It gets ``nturgb+d_rgb``, ``nturgb+d_skeletons``, ``classes.txt`` and, last, ``synth.json``.
        seed: of everything random; at least 0. The clips do not depend on the number of workers.
        subjects: number of people, from P001; 1 to 100.
        replications: repetitions of each action by each person; 1 to 999.
        actions: official NTU numbers of the actions; None for all that can be rendered.
        cameras: of 1 (in front), 2 (-45 degrees) and 3 (+45 degrees).
        workers: processes; None for one per usable core.
        progress: whether to show a progress bar.

    Returns:
        The manifest, as in ``synth.json``.

    Raises:
        UsageError: A setting is out of range, or the folder was made with other settings.
        DataError: The folder holds other files under the same names.
    """
    chosen = sorted(set(ACTIONS if actions is None else actions))
    filmed = sorted(set(cameras))
    require_settings(seed, {"subjects": subjects, "replications": replications}, filmed, workers)
    require_known("action", chosen, ACTIONS)
    settings = {
        "motion": None, "version": SYNTH_VERSION, "seed": seed,
        "subjects": subjects, "replications": replications, "actions": chosen, "cameras": filmed,
        "width": WIDTH, "height": HEIGHT, "fps": FPS,
    }  # fmt: skip
    clips = plan(seed, subjects, replications, chosen, filmed)
    details = {
        "camera_angles": {f"C{camera:03d}": ANGLES[camera] for camera in filmed},
        "people": {f"P{subject:03d}": asdict(Person.of(seed, subject)) for subject in range(1, subjects + 1)},
        "setups": {f"S{setup:03d}": asdict(Setup.of(seed, setup)) for setup in sorted({clip.setup for clip in clips})},
    }
    return produce(Path(output), settings, clips, {action: ntu.ACTIONS[action - 1] for action in chosen}, details, workers, progress)


class Renderable(Protocol):
    """A clip that a worker process can render."""

    def make(self, root: Path) -> None:
        """Write its files, each whole or not at all, the last one last."""

    def made(self, root: Path) -> bool:
        """Whether its files exist."""


class Described(Renderable, Protocol):
    """A clip with a line in the manifest."""

    @property
    def name(self) -> str:
        """NTU's name."""

    def describe(self) -> dict[str, Any]:
        """The clip's line in the manifest."""


def paths_of(name: str, root: Path) -> tuple[Path, Path]:
    """Video and skeleton file of a clip."""
    return root / VIDEOS / f"{name}_rgb.avi", root / SKELETONS / f"{name}.skeleton"


def produce(
    output: Path,
    settings: dict[str, Any],
    clips: Sequence[Described],
    classes: dict[int, str],
    details: dict[str, Any],
    workers: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Render the missing clips of a set, then write its list of classes and its manifest.

    Args:
        output: folder to write.
        settings: what determines the clips; a folder of other settings is refused.
        clips: all clips of the set.
        classes: names of the actions by their numbers.
        details: what else the manifest says.
        workers: processes; None for one per usable core.
        progress: whether to show a progress bar.

    Returns:
        The manifest.
    """
    claim(output, settings, (VIDEOS, SKELETONS), (CLASSES,))
    each_made(clips, output, workers, "synth", "clip", progress)
    write(output / CLASSES, "".join(f"A{action:03d} {name}\n" for action, name in classes.items()))
    manifest = {
        **settings,
        "classes": {f"A{action:03d}": name for action, name in classes.items()},
        **details,
        "clips": [clip.describe() for clip in clips],
    }
    write(output / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    (output / STARTED).unlink(missing_ok=True)
    return manifest


def require_settings(seed: int, counts: dict[str, int | None], cameras: Sequence[int], workers: int | None) -> None:
    """Refuse settings out of range.

    Raises:
        UsageError: The message names the setting.
    """
    if seed < 0:
        raise UsageError(f"seed {seed}: must be 0 or more")
    for name, value in counts.items():
        limit = MAX_SUBJECTS if name == "subjects" else 999
        if value is not None and not 1 <= value <= limit:
            raise UsageError(f"{name} {value}: must be between 1 and {limit}")
    require_known("camera", cameras, ANGLES)
    if workers is not None and workers < 1:
        raise UsageError(f"workers {workers}: must be 1 or more")


def require_known(name: str, values: Sequence[int], known: Collection[int]) -> None:
    """Refuse numbers that cannot be rendered, or none."""
    if not values:
        raise UsageError(f"no {name} chosen: give at least one of {', '.join(map(str, known))}")
    for value in values:
        if value not in known:
            raise UsageError(f"{name} {value}: cannot be rendered; choose from {', '.join(map(str, known))}")


def claim(output: Path, settings: dict[str, Any], folders: Sequence[str], files: Sequence[str]) -> None:
    """Mark the folder with these settings. Refuse a folder of other settings or with other files.

    Args:
        output: the folder.
        settings: what determines its content.
        folders: names of the folders inside, which are made.
        files: names of the files inside that will be written beside the manifest.

    Raises:
        UsageError: It was made with other settings.
        DataError: It holds what no manifest explains.
    """
    inner = [output / name for name in folders]
    for folder in inner:
        if folder.is_symlink():
            raise DataError(f"{folder}: a link out of the folder to write; remove it, or choose another folder")
    for file in (output / MANIFEST, output / STARTED):
        if not file.exists():
            continue
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            differing = next((name for name in settings if before.get(name) != settings[name]), None)
        except (ValueError, AttributeError):
            raise DataError(f"{file}: not a record of rendered clips; delete it, or choose another folder") from None
        if differing:
            raise UsageError(
                f"{output}: made with {differing} {before.get(differing)} and not {settings[differing]}; "
                "choose another folder, or delete this one"
            )
        break
    else:
        for folder in inner:
            if folder.exists() and any(folder.iterdir()):
                raise DataError(f"{folder}: holds files that no record in {MANIFEST} explains; choose another folder")
        for file in (output / name for name in files):
            if os.path.lexists(file):
                raise DataError(f"{file}: no record in {MANIFEST} explains it, and it would be replaced; choose another folder")
        for folder in inner:
            folder.mkdir(parents=True, exist_ok=True)
        write(output / STARTED, json.dumps(settings) + "\n")
    for folder in inner:
        folder.mkdir(parents=True, exist_ok=True)
    tidied(output)


def each_made(clips: Sequence[Renderable], output: Path, workers: int | None, title: str, unit: str, progress: bool) -> None:
    """Render the clips that are missing, with a bar over all of them."""
    missing = [clip for clip in clips if not clip.made(output)]
    bar = tqdm(total=len(clips), initial=len(clips) - len(missing), desc=title, unit=unit, disable=not progress)
    _render(missing, output, workers or usable_cores(), bar)


def _render(clips: Sequence[Renderable], output: Path, workers: int, bar: tqdm) -> None:
    """Render all clips, here or in worker processes. An interrupt leaves whole files only."""
    with bar:
        if workers == 1 or len(clips) <= 1:
            for clip in clips:
                clip.make(output)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")  # safe with threads of the caller
        executor = ProcessPoolExecutor(min(workers, len(clips)), mp_context=context, initializer=start_worker)
        try:
            for done in as_completed([executor.submit(clip.make, output) for clip in clips]):
                done.result()
                bar.update()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def write(path: Path, text: str) -> None:
    """Write a text file of a rendered set, whole or not at all."""
    with replacing(path, follow=False, tidy=False) as part:
        part.write_text(text, encoding="utf-8")
