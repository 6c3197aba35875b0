"""The Python interface: a file in, the most likely actions out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.batches import EventTokens
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip, decode_sampled, probe
from vtlvlm.dictionary import EventDictionary
from vtlvlm.errors import DataError, UsageError
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelScores
from vtlvlm.recognizers.limits import MOST_PIXELS, require_modest
from vtlvlm.recognizers.recordings import PACKED, packed_in
from vtlvlm.rejection import Familiarity, RejectionRule
from vtlvlm.rejection.rule import signals_of
from vtlvlm.segments.finding import Found, find
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.windows import Grid
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.reading import ENDING
from vtlvlm.system.cpu import usable_cores
from vtlvlm.system.text import shown
from vtlvlm.vtem.clip_facts import change_rate, distance
from vtlvlm.vtem.encoding import Events
from vtlvlm.vtem.extractors import Backbone, FeatureExtractor
from vtlvlm.vtem.model import VTEM


class Sampled(NamedTuple):
    """What a recogniser looked at in a video."""

    frames: list[int]
    """numbers of the T frames, from 0 in display order; of several views, each once"""
    times: list[float]
    """their seconds from the start"""
    rate: float
    """the video's declared frames per second"""
    seconds: float
    """length of the video"""


class Recognition(NamedTuple):
    """The result for one file."""

    file: Path
    actions: list[tuple[str, float]]
    """categories and their probabilities, most likely first; the probabilities of all categories sum to one"""
    events: EventTokens | None
    """the clip's event sentence, B = 1; None from a linear probe, a skeleton network and a video network"""
    seconds: float
    """seconds of decoding and computing"""
    sampled: Sampled | None = None
    """the frames that it looked at; None for a skeleton network"""
    familiarity: Familiarity | None = None
    """whether it is like anything in the training; None if the model has no rule for this"""


class Answer(NamedTuple):
    """What a model says of a clip."""

    probabilities: Tensor
    """(A,) calibrated"""
    events: EventTokens | None = None
    """the event sentence; None from a recogniser without event sentences"""
    familiarity: Familiarity | None = None
    """None without a rule of rejection"""
    motion: Tensor | None = None
    """(N, 2) seconds from the clip's start and motion, 1 where it counts as moving; None if the model does not know when it moves"""


class Views(NamedTuple):
    """Several views of a clip, whose log-probabilities are averaged."""

    clips: list[Clip]


class Decoded(NamedTuple):
    """A file's content, and the seconds that reading it took."""

    clip: Any
    """a ``Clip``, ``Views`` of one, or a ``Recording`` of skeletons"""
    seconds: float
    sampled: Sampled | None = None


class Recognizer(ABC):
    """A trained model for single files.

    Args:
        classes: category names, in label order.
        device: where to run; ``auto`` is the first GPU, or else the CPU.
    """

    suspects = "its weights"
    """the likely damage if the model gives no probabilities"""

    def __init__(self, classes: list[str], device: str) -> None:
        self.device = found_device(device)
        self.classes = list(classes)

    def classify(self, file: str | Path, top: int = 5) -> Recognition:
        """The most likely actions in a file.

        Args:
            file: any video that FFmpeg can read; for a skeleton network a ``.skeleton`` file, or ``FILE.npz/NAME`` for a recording of an
                ``.npz`` file.
            top: number of actions to return, most likely first.

        Raises:
            DataError: The file cannot be read, is of the other kind, or the model gives no probabilities.
        """
        return self._answer(Path(file), self._decode(Path(file)), top)

    def classify_each(self, files: Sequence[str | Path], top: int = 5) -> Generator[Recognition | DataError, None, None]:
        """As :meth:`classify`, for many files in their order. Threads decode the next files while the model computes.

        At most ``ahead`` clips are decoded and wait; they take at most 4 GiB of memory. Closing the iterator stops the threads.

        Yields:
            The most likely actions in each file, or the error that :meth:`classify` would raise.
        """
        places, stop = deque(map(Path, files)), Event()
        waiting: deque[tuple[Path, Future[Decoded]]] = deque()
        pool = ThreadPoolExecutor(self.ahead)
        try:
            while places or waiting:
                while places and len(waiting) <= self.ahead:
                    waiting.append((file := places.popleft(), pool.submit(self._decode, file, stop)))
                file, decoding = waiting.popleft()
                try:
                    found: Recognition | DataError = self._answer(file, decoding.result(), top)
                except DataError as error:
                    found = error
                yield found
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    @property
    @abstractmethod
    def ahead(self) -> int:
        """Clips that :meth:`classify_each` decodes ahead, each in a thread of its own."""

    @abstractmethod
    def _decode(self, file: Path, stop: Event | None = None) -> Decoded:
        """The content of a file. ``stop`` may end the reading early."""

    @torch.inference_mode()
    def _answer(self, file: Path, decoded: Decoded, top: int) -> Recognition:
        start = time.perf_counter()
        probabilities, events, familiarity, _ = self.recognise(decoded.clip)
        if not bool(torch.isfinite(probabilities).all()):
            raise DataError(f"{file}: the model gives no probabilities for it (NaN); {self.suspects} are damaged")
        best = probabilities.topk(min(top, len(self.classes)))
        actions = [(self.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return Recognition(file, actions, events, decoded.seconds + time.perf_counter() - start, decoded.sampled, familiarity)

    @abstractmethod
    def recognise(self, clip: Any) -> Answer:
        """What the model says of a clip. :meth:`classify` checks that the probabilities are numbers."""


class VideoRecognizer(Recognizer):
    """A trained model for single videos.

    Args:
        classes: category names, in label order.
        sampling: frame sampling for a file, as in training.
        extractor: reads the frames.
        device: where to run; ``auto`` is the first GPU, or else the CPU.
        views: views of a file that :meth:`classify` reads.

    Attributes:
        clip_seconds: median length of the training clips, if its bundle says so.
    """

    def __init__(
        self, classes: list[str], sampling: FrameSampling, extractor: FeatureExtractor, device: str, views: Sequence[int] = (0,)
    ) -> None:
        require_modest(sampling, extractor, len(views))
        super().__init__(classes, device)
        as_for_single_clips(extractor, self.device)
        self.sampling, self.views = sampling, tuple(views)
        self.clip_seconds: float | None = None

    @property
    def ahead(self) -> int:
        """One on a CPU, which computes with all cores meanwhile, and otherwise up to one for each core."""
        held = max(1, MOST_PIXELS // (self.sampling.frames * self.sampling.size**2 * 3 * len(self.views)))
        return 1 if self.device.type == "cpu" else min(usable_cores(), held)

    def segments(self, file: str | Path, clip: float | None = None, hop: float | None = None, **rule: Any) -> Found:
        """The actions in a long video, with their times, as `vtlvlm segment` finds them.

        Args:
            file: any video that FFmpeg can read.
            clip: seconds of a window; ``clip_seconds`` if None, or 3 if that is unknown.
            hop: seconds from one window to the next; a quarter of ``clip`` if None.
            rule: settings of ``Rule``: ``least``, ``switch``, ``shortest``, ``gap``, ``decide``, ``motion``.

        Raises:
            UsageError: A setting is out of range.
            DataError: The file cannot be read, or the model gives no probabilities.
        """
        require_kind(Path(file), None)
        return find(self, file, self.grid(clip, hop), Rule(**rule))

    def grid(self, clip: float | None = None, hop: float | None = None) -> Grid:
        """The windows of a long video; ``clip`` and ``hop`` as for :meth:`segments`."""
        seconds = clip or self.clip_seconds or 3.0
        return Grid(seconds, seconds / 4 if hop is None else hop)

    def _decode(self, file: Path, stop: Event | None = None) -> Decoded:
        start = time.perf_counter()
        require_kind(file, None)
        info = probe(file, stop=stop)
        known: dict[str, Any] = {"num_frames": info.frames, "rate": info.fps}
        clips = [decode_sampled(file, self.sampling, view=view, **known, stop=stop) for view in self.views]
        numbers = np.concatenate([self.sampling.view(view, name="", seed=0, **known).indices for view in self.views])
        times = np.concatenate([clip.times.numpy() for clip in clips])
        if len(clips) > 1:
            numbers, first = np.unique(numbers, return_index=True)
            times = times[first]
        sampled = Sampled(numbers.tolist(), times.tolist(), info.fps, info.duration)
        return Decoded(clips[0] if len(clips) == 1 else Views(clips), time.perf_counter() - start, sampled)


class _Read(NamedTuple):
    """A clip, B = 1: its event sentence, what the language model says of it, how fast its features change (B, N, 2), and how far they are
    from the training's (B,)."""

    events: Events
    scores: LabelScores
    rates: Tensor
    distance: Tensor


class ActionRecognizer(VideoRecognizer):
    """A trained pipeline for single files.

    Args:
        vtem: trained VTEM.
        reasoner: LLaVA with its adapter, built for ``classes``.
        classes: category names, in label order.
        sampling: frame sampling for a file, as in training.
        device: where to run; ``auto`` is the first GPU, or else the CPU.

    Attributes:
        dictionary: what the codes of its event sentences are, if its bundle says so.
        rejection: says whether a clip is unlike the training, if its bundle has a rule for this.
        moving: change of the features in a second from which the training clips count as moving, if its bundle says so.
    """

    suspects = "its weights or its LLaVA"
    """the likely damage if the model gives no probabilities"""

    def __init__(
        self,
        vtem: VTEM,
        reasoner: EventReasoner,
        classes: list[str],
        sampling: FrameSampling,
        device: str = "auto",
    ) -> None:
        super().__init__(classes, sampling, vtem.extractor, device)
        self.dictionary: EventDictionary | None = None
        self.rejection: RejectionRule | None = None
        self.moving: float | None = None
        self.vtem = vtem.to(self.device).eval()
        self.reasoner = reasoner.to(self.device).eval()

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, vtem: str | Path | None = None, device: str = "auto", **computed: Any) -> Recognizer:
        """Load a recogniser from a bundle, or from a run folder or checkpoint of stage 2, of a skeleton network or of a video network.

        A linear probe's bundle, made by ``vtlvlm probe --export``, gives a ``ProbeRecognizer`` without event sentences, a video network a
        ``NetworkRecognizer`` without. A skeleton network gives a ``SkeletonRecognizer``, which reads ``.skeleton`` files and recordings of
        ``.npz`` files.

        Args:
            path: folder with ``bundle.json``, folder with ``checkpoints/``, or a ``.ckpt`` file.
            vtem: the stage-1 checkpoint, if it has moved since training; bundles hold their own.
            device: ``auto``, ``cpu``, ``cuda``, …
            computed: settings of ``Llava`` that may differ from training: ``llava`` for its path, ``dtype`` (by default, a CPU uses float32
                instead of half precision), ``attention``, ``quantization``, ``kernels``, ``gradient_checkpointing``,
                ``max_positions``.

        Raises:
            UsageError: Something is missing, or is not as expected.
        """
        from vtlvlm.recognizers.loading import load  # imported here, since it imports this module

        return load(Path(path), vtem, device, computed)

    def recognise(self, clip: Clip) -> Answer:
        """What the model says of a clip; with a rule of rejection, also whether it is like the training."""
        read = self._read(clip)
        probabilities = self.reasoner.probabilities(read.scores.score)
        found = None
        if self.rejection is not None:
            found = self.rejection(self._signals(read, probabilities, self.rejection.training))[0]
        return Answer(probabilities[0].cpu(), read.events.tokens, found, self._motion(read.rates[0]))

    def signals(self, clip: Clip, training: Tensor) -> NDArray[np.float64]:
        """The signals (6,) that a rule of rejection reads, of a clip.

        Args:
            clip: As :meth:`recognise` takes it.
            training: (N, E) mean event vectors of training clips.
        """
        read = self._read(clip)
        row: NDArray[np.float64] = self._signals(read, self.reasoner.probabilities(read.scores.score), training)[0]
        return row

    def _motion(self, rates: Tensor) -> Tensor | None:
        """Motion (N, 2) from how fast features change (N', 2). None if it is not known: the frames do not span the clip, or are one
        picture."""
        known = rates[rates[:, 1].isfinite()]
        if self.moving is None or self.sampling.mode != "uniform" or not len(known):
            return None
        return known / known.new_tensor([1.0, self.moving])

    def _read(self, clip: Clip) -> _Read:
        times = self.vtem.extractor.step_times(clip.times[None].to(self.device))
        features = self.vtem.extractor(clip.frames[None].to(self.device))
        events = self.vtem.events(features, times)
        far = distance(features, self.vtem.mean, self.vtem.std)
        return _Read(events, self.reasoner(events.tokens.vectors), change_rate(features, times, self.vtem.std), far)

    @staticmethod
    def _signals(read: _Read, probabilities: Tensor, training: Tensor) -> NDArray[np.float64]:
        tokens, continuous = read.events.tokens, read.events.continuous
        return signals_of(tokens, continuous, probabilities, read.scores.in_list_mass, training, read.rates[..., 1], read.distance)


def as_for_single_clips(extractor: FeatureExtractor, device: torch.device) -> None:
    """Set how an extractor computes single clips on a device."""
    if isinstance(extractor, Backbone):
        extractor.run = extractor.feature_map  # a model's file may ask for compiling, which takes minutes
        if device.type == "cpu":
            extractor.precision = "float32"  # most CPUs compute half precision far slower; the result differs by its rounding


def found_device(name: str) -> torch.device:
    """A device by name; ``auto`` is the first GPU, or else the CPU.

    Raises:
        UsageError: The device cannot be used here.
    """
    if name.partition(":")[0] == "mps":
        raise UsageError(f"device {shown(name, 40)}: has no float64, which pooling needs; use cpu")
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise UsageError(f"device {name}: cannot be used here ({str(error).splitlines()[0]}); use cpu") from error
    return device


def require_kind(file: Path, layout: str | None) -> None:
    """Refuse a video for a skeleton network, recordings of bodies for a model of videos, and ``.skeleton`` files for a network of other
    joints than theirs, by the file's ending.

    Args:
        file: Need not exist.
        layout: Name of the joints that a skeleton network reads; None for a model of videos.

    Raises:
        DataError: The file is of another kind.
    """
    if layout is None:
        if file.suffix in (ENDING, PACKED):
            raise DataError(f"{file}: this model reads videos; give the video, or name the bundle of a skeleton network")
    elif packed_in(file) is None and layout != NTU25.name:
        raise DataError(f"{file}: this model reads the joints of {shown(layout, 40)}, which are in {PACKED} files of recordings; give one")
    elif packed_in(file) is None and file.suffix != ENDING:
        raise DataError(
            f"{file}: this model reads {ENDING} files and {PACKED} files of recordings; from a video, `vtlvlm poses` makes such a file: "
            "vtlvlm poses VIDEO FOLDER"
        )
