"""The routes of the app: its page, the clips of the page, and the same recogniser for programs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from vtlvlm import __version__
from vtlvlm.app.clips import Clips
from vtlvlm.app.codes import Codes
from vtlvlm.app.desk import Desk
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.recognizer import ActionRecognizer, VideoRecognizer
from vtlvlm.segments.windows import Grid
from vtlvlm.system.files import nan_as_none
from vtlvlm.web.guard import LOOPBACK, guarded
from vtlvlm.web.serving import pages
from vtlvlm.web.store import Store

PAGE = Path(__file__).parent / "page"
FILES = ("index.html", "app.css", "app.js", "pane.js", "timeline.js", "codes.js", "compare.js", "parts.js")
SWEPT = 30
"""Seconds between two searches for expired clips"""


@dataclass(frozen=True)
class Settings:
    """What the server takes, and for how long.

    Attributes:
        megabytes: Of a clip, at most.
        minutes: Length of a clip, at most.
        keep: Minutes after which a clip that no page asks for is removed.
        clip: Seconds of a window in a long video; None for the length of the training clips, as the bundle says.
        hosts: Names by which the server may be called.
        token: Secret of a server that other machines reach.
        folder: Where the private folder of the clips is made; None for the system's temporary files.

    Raises:
        UsageError: A number is out of range.
    """

    megabytes: float = 500
    minutes: float = 30
    keep: float = 60
    clip: float | None = None
    hosts: Sequence[str] = LOOPBACK
    token: str | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("megabytes", "minutes", "keep"):
            if not 0 < getattr(self, name) < 1e6:
                raise UsageError(f"{name}={getattr(self, name):g}: above 0 and below a million")
        if self.clip is not None:
            Grid(self.clip, self.clip / 4)


def application(model: VideoRecognizer, name: str, settings: Settings) -> Starlette:
    """The app. Its private folder exists while it runs.

    Args:
        model: Recognises clips.
        name: What the page calls it.
        settings: Limits, and who may use it.
    """
    grid = model.grid(settings.clip)
    codes = Codes(model.dictionary if isinstance(model, ActionRecognizer) else None)
    facts = {
        "name": name,
        "version": __version__,
        "actions": len(model.classes),
        "sentence": isinstance(model, ActionRecognizer),
        "dictionary": codes.dictionary is not None,
        "clip": grid.clip,
        "bytes": int(settings.megabytes * 1e6),
        "minutes": settings.minutes,
    }

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        try:
            store = Store(int(settings.megabytes * 1e6), 60 * settings.keep, parent=settings.folder)
        except OSError as error:
            app.state.failure = error  # for `serve`
            raise
        app.state.clips = Clips(model, store, Desk(), 60 * settings.minutes, grid)
        sweeper = asyncio.get_running_loop().create_task(_sweep(store))
        try:
            yield
        finally:
            sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await sweeper
            await app.state.clips.close()
            store.close()

    async def described(request: Request) -> Response:
        return JSONResponse(facts)

    async def of_codes(request: Request) -> Response:
        return JSONResponse(codes.described(request.query_params.get("ids", "")))

    async def picture(request: Request) -> Response:
        found = codes.picture(request.path_params["code"])
        return Response(found, media_type="image/webp", headers={"cache-control": "private, max-age=3600"})

    routes = [
        *pages(PAGE, FILES),
        Route("/health", _health),
        Route("/api/model", described),
        Route("/api/classify", _classify, methods=["POST"]),
        Route("/clips", _receive, methods=["POST"]),
        Route("/clips/{name}", _show, methods=["GET"]),
        Route("/clips/{name}", _remove, methods=["DELETE"]),
        Route("/clips/{name}/video", _video),
        Route("/clips/{name}/{work}", _work, methods=["POST"]),
        Route("/compare", _compare),
        Route("/codes", of_codes),
        Route("/codes/{code:int}.webp", picture),
    ]
    return guarded(routes, hosts=settings.hosts, token=settings.token, lifespan=running)


async def _sweep(store: Store) -> None:
    while True:
        await asyncio.sleep(SWEPT)
        store.sweep()


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok", "version": __version__})


async def _classify(request: Request) -> Response:
    """The body is a video, the answer the JSON of ``classify --json``."""
    clips, top = _clips(request), _number(request, "top", 5)
    if top < 1 or top != int(top):
        raise UsageError("top: a whole number from 1")
    clips.desk.require_room()
    stored = await clips.store.receive(request)
    return JSONResponse(nan_as_none(await clips.once(stored, int(top))))


async def _receive(request: Request) -> Response:
    stored = await _clips(request).store.receive(request)
    return JSONResponse({"id": stored.name, "bytes": stored.size}, 201)


async def _show(request: Request) -> Response:
    return JSONResponse(nan_as_none(_clips(request).get(request.path_params["name"])[1].plain()))


async def _remove(request: Request) -> Response:
    _clips(request).remove(request.path_params["name"])
    return Response(status_code=204)


async def _video(request: Request) -> Response:
    _, progress = _clips(request).get(request.path_params["name"])
    if progress.video is None:
        raise HTTPException(404, progress.video_error or "this clip has no video that a browser plays (yet)")
    file, kind = progress.video
    return FileResponse(file, media_type=kind)


async def _work(request: Request) -> Response:
    clips, name, work = _clips(request), request.path_params["name"], request.path_params["work"]
    if work == "recognise":
        clips.recognise(name)
    elif work == "preview":
        clips.preview(name)
    elif work == "segments":
        clip = _number(request, "clip", clips.grid.clip)
        clips.segment(name, Grid(clip, clip / 4))
    else:
        raise HTTPException(404, "no such work: recognise, preview or segments")
    return JSONResponse(clips.get(name)[1].plain(), 202)


async def _compare(request: Request) -> Response:
    asked = request.query_params
    return JSONResponse(_clips(request).compare(asked.get("a", ""), asked.get("b", "")))


def _clips(request: Request) -> Clips:
    found: Clips = request.app.state.clips
    return found


def _number(request: Request, name: str, default: float) -> float:
    text: Any = request.query_params.get(name, default)
    try:
        found = float(text)
    except ValueError as error:
        raise UsageError(f"{name}: a number") from error
    if not math.isfinite(found):
        raise UsageError(f"{name}: a finite number")
    return found
