"""The clips of the page: what is done with each, and how far it is."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from vtlvlm.app.comparing import align
from vtlvlm.app.desk import Desk
from vtlvlm.app.limits import measured
from vtlvlm.data.preview import browser_type, write_preview
from vtlvlm.data.video import Stopped
from vtlvlm.errors import DataError
from vtlvlm.recognizers.answers import as_dict
from vtlvlm.recognizers.recognizer import VideoRecognizer
from vtlvlm.segments.finding import find
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.windows import Grid
from vtlvlm.system.streams import gist
from vtlvlm.web.store import Store, Stored

SHOWN = 20
"""Actions of a clip on the page, at most"""
LONG = 4
"""A video of more windows than this is searched for segments without being asked"""


@dataclass
class Progress:
    """What is done with a clip.

    Attributes:
        stage: ``stored``, ``waiting``, ``recognising``, ``preview``, ``segments``, ``done`` or ``failed``.
        seconds: Of the video that the stage has done.
        began: When the stage began, in seconds of a clock.
        length: Seconds of the video, once known.
        long: Whether it is searched for segments without being asked.
        error: Why there is no answer.
        answer: As ``classify --json``.
        segments: As ``segment``'s JSON; or why there are none, as ``error``.
        video: What the browser plays, and its media type.
        video_error: Why it plays nothing.
        stop: Ends the work.
    """

    stage: str = "stored"
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)
    length: float | None = None
    long: bool = False
    error: str | None = None
    answer: dict[str, Any] | None = None
    segments: dict[str, Any] | None = None
    video: tuple[Path, str] | None = None
    video_error: str | None = None
    stop: Event = field(default_factory=Event)

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        self.stage, self.seconds, self.began = stage, 0.0, time.monotonic()

    def note(self, seconds: float) -> None:
        """Remember how much of the video is done.

        Raises:
            Stopped: The clip was removed.
        """
        self.seconds = seconds
        if self.stop.is_set():
            raise Stopped

    @property
    def under_way(self) -> bool:
        """Whether something is being done with it."""
        return self.stage in ("waiting", "recognising", "preview", "segments")

    def plain(self) -> dict[str, Any]:
        """For the page."""
        return {
            "stage": self.stage,
            "seconds": round(self.seconds, 2),
            "elapsed": round(time.monotonic() - self.began, 1),
            "length": self.length,
            "long": self.long,
            "error": self.error,
            "answer": self.answer,
            "segments": self.segments,
            "video": None if self.video is None else self.video[1],
            "video_error": self.video_error,
        }


class Clips:
    """Does what the page asks for.

    Args:
        model: Recognises the clips.
        store: Keeps them.
        desk: Does the work.
        seconds: Length of a clip, at most.
        grid: Windows of a long video.
    """

    def __init__(self, model: VideoRecognizer, store: Store, desk: Desk, seconds: float, grid: Grid) -> None:
        self.model, self.store, self.desk, self.seconds, self.grid = model, store, desk, seconds, grid
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, name: str) -> tuple[Stored, Progress]:
        """A clip and what is done with it.

        Raises:
            HTTPException: 404 if there is none.
        """
        stored = self.store.get(name)
        stored.extra = stored.extra or Progress()
        return stored, stored.extra

    def remove(self, name: str) -> None:
        """Remove a clip, and end what is done with it."""
        self.get(name)[1].stop.set()
        self.store.remove(name)

    async def once(self, stored: Stored, top: int) -> dict[str, Any]:
        """The answer for a program: one clip, which is removed."""
        try:
            found = await self.desk.do(lambda: self._recognised(stored.file, top))
            return {**found, "file": "upload"}
        except DataError as error:
            raise DataError(told(error, stored.file)) from error
        finally:
            self.store.remove(stored.name)

    # -- what the page asks for; each ends in good order if the clip is removed meanwhile ------------------------------------------------

    def recognise(self, name: str) -> None:
        """Begin to recognise a clip, to make a copy that the browser plays if it needs one, and to find the segments of a long one.

        Raises:
            HTTPException: 404 if there is no such clip, 503 if too many wait.
        """
        stored, progress = self.get(name)
        if progress.under_way or progress.answer is not None:
            return
        self._begin(stored, self._recognise(stored, progress))

    def segment(self, name: str, grid: Grid) -> None:
        """Begin to find the segments of a clip.

        Raises:
            HTTPException: 404 if there is no such clip, 409 if it is not recognised yet, 503 if too many wait.
        """
        stored, progress = self._ready(name)
        self._begin(stored, self._then(progress, self._segment(stored, progress, grid)))

    def preview(self, name: str) -> None:
        """Begin to make a copy that every browser plays.

        Raises:
            HTTPException: As for ``segment``.
        """
        stored, progress = self._ready(name)
        self._begin(stored, self._then(progress, self._preview(stored, progress)))

    def compare(self, one: str, other: str) -> dict[str, Any]:
        """Two clips beside each other.

        Raises:
            HTTPException: 404 if there is no such clip, 409 if one has no codes (yet).
        """
        sentences = []
        for name in (one, other):
            answer = self.get(name)[1].answer
            if answer is None or (answer["events"] or {}).get("codes") is None:
                raise HTTPException(409, "the two clips have no event sentences to compare")
            sentences.append(np.asarray(answer["events"]["codes"], dtype=np.int64))
        found = align(*sentences)
        return {"pairs": found.pairs, "shared": found.shared, "likeness": round(found.likeness, 4)}

    async def close(self) -> None:
        """End all work: what waits is dropped, and a preview or a search stops where it is."""
        for stored in self.store.items():
            if stored.extra is not None:
                stored.extra.stop.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self.desk.close)

    def _ready(self, name: str) -> tuple[Stored, Progress]:
        stored, progress = self.get(name)
        if progress.answer is None or progress.under_way:
            raise HTTPException(409, "this clip is not recognised yet; ask again when it is done")
        return stored, progress

    def _begin(self, stored: Stored, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.desk.require_room()
        except HTTPException:
            work.close()
            raise
        progress: Progress = stored.extra
        progress.error = None
        progress.enter("waiting")
        task = asyncio.get_running_loop().create_task(self._held(stored, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _held(self, stored: Stored, work: Coroutine[Any, Any, None]) -> None:
        """A work, during which the clip does not expire."""
        stored.held += 1
        progress: Progress = stored.extra
        try:
            await work
        except Stopped:
            pass  # the clip was removed: nobody waits for its result
        except DataError as error:
            progress.enter("failed")
            progress.error = told(error, stored.file)
        except Exception as error:  # the server goes on
            sys.stderr.write(f"vtlvlm: this is a defect: {type(error).__name__}: {gist(error)}; please report it\n")
            progress.enter("failed")
            progress.error = f"this is a defect: {type(error).__name__}; the server's terminal says more"
        finally:
            stored.held -= 1
            stored.used = time.monotonic()

    async def _then(self, progress: Progress, work: Coroutine[Any, Any, None]) -> None:
        await work
        progress.enter("done")

    async def _recognise(self, stored: Stored, progress: Progress) -> None:
        def work() -> tuple[dict[str, Any], str | None]:
            progress.note(0.0)
            progress.enter("recognising")
            return self._recognised(stored.file, SHOWN), browser_type(stored.file)

        answer, kind = await self.desk.do(work)
        length = float(answer["sampled"]["seconds"])
        progress.length, progress.long = length, length > LONG * self.grid.clip
        progress.answer = {**answer, "file": None}
        if kind is not None:
            progress.video = stored.file, kind
        else:
            await self._preview(stored, progress)
        if progress.long:
            await self._segment(stored, progress, self.grid)
        progress.enter("done")

    async def _preview(self, stored: Stored, progress: Progress) -> None:
        target = stored.file.with_name("preview")

        def work() -> None:
            progress.note(0.0)
            progress.enter("preview")
            write_preview(stored.file, target, progress=progress.note, stop=progress.stop)

        try:
            await self.desk.do(work)
            progress.video, progress.video_error = (target, "video/mp4"), None
        except DataError as error:
            progress.video_error = told(error, stored.file)

    async def _segment(self, stored: Stored, progress: Progress, grid: Grid) -> None:
        def work() -> dict[str, Any]:
            progress.note(0.0)
            progress.enter("segments")
            found = find(self.model, stored.file, grid, Rule(), progress.note)
            rows = [
                {"action": one.label, "start": round(one.start, 3), "end": round(one.end, 3), "score": round(one.score, 6)}
                for one in found.segments
            ]
            return {"clip": grid.clip, "segments": rows, "error": None}

        try:
            progress.segments = await self.desk.do(work)
        except DataError as error:
            progress.segments = {"clip": grid.clip, "segments": [], "error": told(error, stored.file)}

    def _recognised(self, file: Path, top: int) -> dict[str, Any]:
        measured(file, self.seconds)
        return as_dict(self.model.classify(file, top))


def told(error: Exception, file: Path) -> str:
    """An error without the server's own path of the file."""
    text = str(error).removeprefix(f"{file}: ").replace(str(file), "this file")
    return text.replace(str(file.parent), "the server's folder")
