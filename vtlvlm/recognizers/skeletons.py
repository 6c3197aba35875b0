"""A skeleton network as a recogniser, and its bundle: a recording of bodies in, the most likely actions out."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.ntu import ClipName
from vtlvlm.errors import DataError, UsageError
from vtlvlm.recognizers.bundles import BUNDLE, new_folder
from vtlvlm.recognizers.limits import MOST_PIXELS
from vtlvlm.recognizers.networks import Plan, Trained, export_network, mean_probabilities, own_settings, read_network
from vtlvlm.recognizers.recognizer import Answer, Decoded, Recognizer, require_kind
from vtlvlm.recognizers.recordings import PackedFiles, packed_in
from vtlvlm.skeleton.backbone import Network
from vtlvlm.skeleton.datamodule import Coordinates, coordinates_of
from vtlvlm.skeleton.heads import TapShape
from vtlvlm.skeleton.heatmaps import HeatMaps
from vtlvlm.skeleton.layouts import LAYOUTS, Layout
from vtlvlm.skeleton.preparing import Preparation
from vtlvlm.skeleton.reading import read_skeleton
from vtlvlm.skeleton.streams import Stream
from vtlvlm.skeleton.transforms import draws
from vtlvlm.stages import recognition
from vtlvlm.stages.parts import build_from
from vtlvlm.system.cpu import usable_cores

KIND = "skeletons"
LONGEST_STREAM = 40
"""Characters of a stream's name, at most"""
AHEAD = 4
"""Recordings that threads read ahead, at most; each may take 128 MiB"""


class Recording(NamedTuple):
    """The content of a ``.skeleton`` file, or of a recording in an ``.npz`` file."""

    name: str
    """NTU's name, or else its own; it seeds the draws of frames"""
    joints: Tensor
    """(1, 3, T, V, M) metres, or pixels with a confidence"""


class Reading(NamedTuple):
    """How a recording becomes the network's input."""

    layout: Layout
    preparation: Preparation
    stream: Stream
    coordinates: Coordinates
    bodies: int
    """M"""
    seed: int
    """Of the data module in training"""

    @classmethod
    def of(cls, described: dict[str, Any], path: Path) -> Reading:
        """Read it from a description, which can be anything.

        Raises:
            UsageError: An entry is missing, or of another type.
        """
        layout, bodies, seed = described.get("layout"), described.get("bodies"), described.get("seed")
        stream, coordinates = described.get("stream"), described.get("coordinates")
        if (
            not isinstance(layout, str)
            or layout not in LAYOUTS
            or type(bodies) is not int
            or type(seed) is not int
            or bodies not in (1, 2)
            or not isinstance(stream, str)
            or len(stream) > LONGEST_STREAM
            or not isinstance(coordinates, str)
            or coordinates not in get_args(Coordinates)
        ):
            raise UsageError(f"{path}: an incomplete description of a network's input; get the file again, or export it again")
        preparation = build_from(described.get("preparation"), Preparation, path)  # type: ignore[type-abstract]
        if coordinates == "pixels" and preparation.needs_metres:
            raise UsageError(f"{path}: its preparation turns bodies in space, which pixels are not; get the file again, or export it again")
        joints = LAYOUTS[layout]
        return cls(joints, preparation, Stream(stream, joints), cast(Coordinates, coordinates), bodies, seed)


def described_input(origin: dict[str, Any]) -> dict[str, Any]:
    """The description of a network's input, from the provenance of its training."""
    sampling = origin["sampling"]
    return {
        "layout": origin["layout"],
        "bodies": origin["bodies"],
        "stream": sampling.get("stream"),
        "coordinates": sampling.get("coordinates"),
        "preparation": {name: sampling.get(name) for name in ("class_path", "init_args")},
        "seed": origin["split"]["seed"],
    }


# -- making ----------------------------------------------------------------------------------------------------------------------------


def export_recognition(output: str | Path, checkpoint: Path) -> Path:
    """Bundle a skeleton network for ``classify``: ``bundle.json``, ``network.safetensors``.

    Weights that only training needs are left out, and so are the names of files that only training reads.

    Args:
        output: Folder to create; it appears whole or not at all.
        checkpoint: Of a skeleton network.

    Raises:
        UsageError: The folder exists.
    """
    folder = new_folder(output)
    stage = recognition.Recognition.load_from_checkpoint(checkpoint)
    described = {"kind": KIND, **described_input(stage.provenance())}
    Reading.of(described, checkpoint)
    return export_network(folder, checkpoint, stage, described)


# -- reading ---------------------------------------------------------------------------------------------------------------------------


class SkeletonRecognizer(Recognizer):
    """A skeleton network for single recordings: those of ``.npz`` files, whose paths are ``FILE.npz/NAME``, and ``.skeleton`` files, if it
    reads NTU's joints. It makes no event sentence: ``events`` of a recognition is None.

    The probabilities are those of ``vtlvlm test`` on the same recording. A preparation that draws frames, such as ``UniformFrames``, draws
    them by the recording's name: they are the same for NTU names.

    Args:
        trained: The network, its head, its temperature and the categories.
        reading: How a recording becomes the network's input.
        device: ``auto`` is the first GPU, or else the CPU.
    """

    def __init__(self, trained: Trained, reading: Reading, device: str = "auto") -> None:
        super().__init__(trained.classes, device)
        self.network, self.head = trained.network.to(self.device).eval(), trained.head.to(self.device).eval()
        self.temperature, self.reading = trained.temperature, reading
        self.packed = PackedFiles()

    @classmethod
    def from_run(cls, checkpoint: Path, device: str) -> SkeletonRecognizer:
        """Load a network from its checkpoint.

        Raises:
            UsageError: The checkpoint is damaged.
        """
        stage = recognition.Recognition.load_from_checkpoint(checkpoint)
        reading, trained = Reading.of(described_input(stage.provenance()), checkpoint), Trained.of(stage)
        require_small(trained.network, reading, checkpoint)
        return cls(trained, reading, device)

    @classmethod
    def from_bundle(cls, folder: Path, described: dict[str, Any], device: str) -> SkeletonRecognizer:
        """Load a network from a bundle.

        Args:
            folder: The bundle.
            described: Its description. Only its format has been checked.
            device: Device of the network.

        Raises:
            UsageError: The bundle is damaged or incomplete.
        """
        path = folder / BUNDLE
        reading = Reading.of(described, path)

        def make(network: Network) -> list[TapShape]:
            network.build(reading.layout, reading.bodies)
            return network.shapes(reading.preparation.window)

        plan = Plan(make, lambda network, head: require_small(network, reading, path), reading.layout)
        trained = read_network(folder, described, Network, plan)  # type: ignore[type-abstract]
        return cls(trained, reading, device)

    @property
    def ahead(self) -> int:
        """One on a CPU, which computes with all cores meanwhile, and otherwise up to ``AHEAD``."""
        return 1 if self.device.type == "cpu" else min(AHEAD, usable_cores())

    def _decode(self, file: Path, stop: Event | None = None) -> Decoded:
        start = time.perf_counter()
        require_kind(file, self.reading.layout.name)
        if packed_in(file) is None:
            name, found = file.name, read_skeleton(file).values
        else:
            name, found = self._packed(file)
        values = coordinates_of(found[: self.reading.bodies], self.reading.coordinates)
        joints = np.zeros((self.reading.bodies, *values.shape[1:]), dtype=np.float32)
        joints[: len(values)] = values
        with suppress(DataError):
            name = str(ClipName.parse(name))
        return Decoded(Recording(name, torch.from_numpy(joints).permute(3, 1, 2, 0)[None]), time.perf_counter() - start)

    def _packed(self, path: Path) -> tuple[str, NDArray[np.float32]]:
        """Name and values (M, T, V, 3) of a recording in an ``.npz`` file.

        Raises:
            DataError: It cannot be read, or holds what the network does not read.
        """
        recordings, row = self.packed.find(path)
        have, needed = recordings.layout, self.reading.layout
        if have != needed:
            raise DataError(
                f"{recordings.source}: holds the {have.num_joints} joints of {have.name}, this model reads the {needed.num_joints} of "
                f"{needed.name}; give recordings of these"
            )
        if self.reading.coordinates == "pixels":
            raise DataError(f"{recordings.source}: holds no pixels, which this model reads; give .skeleton files")
        return recordings.paths[row], recordings.values(row)

    def recognise(self, clip: Recording) -> Answer:
        """The probabilities of a recording, the mean over its test views, without events.

        Raises:
            UsageError: The network cannot compute with its settings.
        """
        reading, joints = self.reading, clip.joints.to(self.device)
        lengths, count = torch.tensor([joints.shape[2]], device=self.device), reading.preparation.numbers(reading.layout)
        log_probs = []
        with own_settings():
            for view in reading.preparation.test_views:
                random = draws([f"{reading.seed}/{clip.name}/{view}"], count).to(self.device)
                prepared = reading.stream(reading.preparation(joints, lengths, reading.layout, random, training=False))
                log_probs.append(self.head(self.network(prepared)).logits.float().log_softmax(-1))
        return Answer(mean_probabilities(log_probs, self.temperature))


def require_small(network: Network, reading: Reading, path: Path) -> None:
    """Refuse settings with which a single clip would need too much memory.

    Args:
        network: Built; it can be without memory.
        reading: Its input.
        path: The file, for the message.

    Raises:
        UsageError: The features of one block would take more than 4 GiB.
    """
    window = reading.preparation.window
    most = 4 * reading.bodies * max(math.prod(shape) for shape in network.shapes(window))
    if isinstance(maps := getattr(network, "maps", None), HeatMaps):
        most *= math.ceil(maps.eval_size / maps.size) ** 2
    if most > MOST_PIXELS:
        raise UsageError(
            f"{path}: {window} frames, whose features take more than {MOST_PIXELS >> 30} GiB a clip; get the file again, or make it again "
            "with fewer"
        )
