"""The rules of a local server, around whatever it answers.

A page of another site can make a browser send requests to this machine. Three checks keep it out: the name of the host, which rebinding of
DNS makes a foreign one; the browser's own word on where a request comes from; and, beyond this machine, a token. Headers forbid the page
to load or to send anything elsewhere.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.streams import gist
from vtlvlm.system.text import shown

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches"""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
"""Headers of every answer"""
OPEN = ("/health",)
"""Paths that need no token: they say nothing about the model or the clips"""
SAFE = ("GET", "HEAD")


def guarded(
    routes: Sequence[BaseRoute],
    *,
    hosts: Sequence[str] = LOOPBACK,
    token: str | None = None,
    lifespan: Lifespan[Starlette] | None = None,
) -> Starlette:
    """An application behind all rules. Errors are answered as JSON, ``{"error": LINE}``.

    Args:
        routes: What it answers.
        hosts: Names in the header ``Host``; others are answered with 400.
        token: A secret that each request must carry, in the query once, then in a cookie, or as ``Authorization: Bearer``. None for none.
        lifespan: As of Starlette.
    """
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Headed),
            Middleware(TrustedHostMiddleware, allowed_hosts=[f"[{name}]" if ":" in name else name for name in hosts], www_redirect=False),
            Middleware(Gate, token=token),
        ],
        exception_handlers={HTTPException: _http, DataError: _unusable, UsageError: _misused, OSError: _machine},
        lifespan=lifespan,
    )


def hosts_of(host: str, names: Sequence[str] = ()) -> list[str]:
    """The names by which a server on ``host`` may be called: those of this machine, and the given ones.

    Args:
        host: Address that it listens on.
        names: More, such as the one that a proxy uses.
    """
    found = [*LOOPBACK, *names]
    if host not in LOOPBACK:
        own = socket.gethostname()
        found += [own, socket.getfqdn(), host]
        with suppress(OSError):  # a machine that does not know itself is called by its given names
            found += [str(address[4][0]) for address in socket.getaddrinfo(own, None)]
    return list(dict.fromkeys(name.strip("[]").lower() for name in found if name and "*" not in name))


def new_token() -> str:
    """A secret of 192 random bits, safe in an address."""
    return secrets.token_urlsafe(24)


def refusal(status: int, line: object, **headers: str) -> JSONResponse:
    """An answer of one line that says what is wrong and what helps."""
    return JSONResponse({"error": shown(line)}, status, headers={name.replace("_", "-"): value for name, value in headers.items()})


class Headed:
    """Adds the headers to each answer, and answers what nobody foresaw with one line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        except Exception as error:
            sys.stderr.write(f"vtlvlm: this is a defect: {type(error).__name__}: {gist(error)}; please report it\n")
            if started:
                raise
            await refusal(500, f"this is a defect: {type(error).__name__}; the server's terminal says more")(scope, receive, with_headers)


class Gate:
    """Refuses requests that other sites cause, and those without the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token
        self.cookie = (
            None if token is None else f"vtlvlm-{hashlib.sha256(token.encode()).hexdigest()[:12]}"
        )  # one for each server of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (answer := self._answer(Request(scope))) is not None:
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        """What keeps a request out; None for one that may pass."""
        if request.method not in SAFE and _foreign(request.headers):
            return refusal(403, "this request comes from a page of another site; open the server's own page")
        if self.token is None or self.cookie is None or request.url.path in OPEN:
            return None
        given = request.query_params.get("token")
        if request.method in SAFE and given is not None and _equal(given, self.token):
            answer = RedirectResponse(request.url.path, 303)  # without the token, which would stay in the browser's history
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return answer
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        carried = bearer.strip() if kind.lower() == "bearer" else request.cookies.get(self.cookie, "")
        if _equal(carried, self.token):
            return None
        return refusal(401, "this server needs its token: open the whole link that it printed when it started", www_authenticate="Bearer")


def _foreign(headers: Headers) -> bool:
    """Whether a browser says that another site caused a request. Programs send neither header."""
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


def _equal(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode())


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail, **{k.replace("-", "_"): v for k, v in (error.headers or {}).items()})


def _unusable(request: Request, error: Exception) -> Response:
    return refusal(422, error)


def _misused(request: Request, error: Exception) -> Response:
    return refusal(400, error)


def _machine(request: Request, error: Exception) -> Response:
    """The disk is full or fails: nothing that the client did."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return refusal(507, f"the server cannot write or read its files now ({reason.lower()}); make room there and try again")
