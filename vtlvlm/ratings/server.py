"""The study's server: raters' pages, media under random names, and answers that are on the disk before they are confirmed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from vtlvlm.errors import DataError, UsageError
from vtlvlm.ratings.answers import Answers, answer_of
from vtlvlm.ratings.study_folder import Study
from vtlvlm.ratings.views import FILES, KINDS, PAGE, about, view
from vtlvlm.web.guard import LOOPBACK, guarded, refusal
from vtlvlm.web.serving import pages
from vtlvlm.web.store import body_of


def application(study: Study, answers: Answers, *, hosts: Sequence[str] = LOOPBACK, token: str | None = None) -> Starlette:
    """The server's application. It writes answers one after another, in the order in which they come.

    Args:
        study: Compared with its hashes before.
        answers: Open for writing.
        hosts: Names in the header ``Host``.
        token: A secret that each request must carry; None for none.
    """

    async def describe(request: Request) -> Response:
        return JSONResponse(about(study))

    async def begin(request: Request) -> Response:
        return JSONResponse(view(study, answers.start()), 201)

    async def session(request: Request) -> Response:
        code = request.path_params["code"]
        if request.method == "DELETE":
            answers.forget(code)
            return JSONResponse({})
        return JSONResponse(view(study, answers.resume(code)))

    async def take(request: Request) -> Response:
        content = await body_of(request)
        try:
            answer = answer_of(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise HTTPException(422, "not an answer of this page; load it again") from error
        try:
            found = answers.add(request.path_params["code"], answer)
        except DataError as error:
            return refusal(507 if isinstance(error.__cause__, OSError) else 422, error)
        except UsageError as error:
            return refusal(409, error)
        return JSONResponse(view(study, found))

    async def media(request: Request) -> Response:
        try:
            path = study.media(request.path_params["name"])
        except KeyError as error:
            raise HTTPException(404, "no such picture or clip") from error
        return FileResponse(path, media_type=KINDS[path.suffix], headers={"cache-control": "private, max-age=3600"})

    async def health(request: Request) -> Response:
        return JSONResponse({"ready": True})

    routes = [
        *pages(PAGE, FILES),
        Route("/about", describe),
        Route("/health", health),
        Route("/media/{name}", media),
        Route("/sessions", begin, methods=["POST"]),
        Route("/sessions/{code}", session, methods=["GET", "DELETE"]),
        Route("/sessions/{code}/answers", take, methods=["POST"]),
    ]
    return guarded(routes, hosts=hosts, token=token)
