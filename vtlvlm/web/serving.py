"""Starts a server on a port of this machine, and ends it in good order on Ctrl-C."""

from __future__ import annotations

import errno
import importlib.util
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vtlvlm.errors import UsageError
from vtlvlm.system.streams import gist
from vtlvlm.system.text import shown

if TYPE_CHECKING:  # the extra may be missing, which require_extra says
    from starlette.applications import Starlette
    from starlette.routing import Route

BACKLOG = 128
LEAVING = 3
"""Seconds that answers in progress have when the server ends"""
CONNECTIONS = 100
"""Requests at one time, at most; others are answered with 503"""


def require_extra() -> None:
    """Refuse to go on without the packages of the extra ``app``.

    Raises:
        UsageError: One is missing.
    """
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{missing[0]} is not installed; install it with: pip install 'vtlvlm[app]'")


def require_token(host: str, token: bool) -> None:
    """Refuse a server that other machines reach without a secret.

    Raises:
        UsageError: The host is not this machine's own, and no token is wanted.
    """
    from vtlvlm.web.guard import LOOPBACK

    if host not in LOOPBACK and not token:
        raise UsageError(f"--host {shown(host, 60)}: other machines could use the server; add --token, which makes a secret link")


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds a port, but does not answer yet.

    Args:
        host: Name or address of this machine.
        port: 0 for any free one; ``getsockname()[1]`` of the socket is the one that was found.

    Raises:
        UsageError: The port is taken or not allowed, or the host is no name of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port {port}: no port; use 127.0.0.1 and a port from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {shown(host, 60)}: no address of this machine; use 127.0.0.1") from error
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {shown(host, 60)}: no address of this machine; use 127.0.0.1") from error
        why = "is used by another program" if error.errno == errno.EADDRINUSE else "may not be used here"
        raise UsageError(f"--port {port}: {why}; name another one, or 0 for any free one") from error
    return found


def address_of(listening: socket.socket, token: str | None = None) -> str:
    """The link to a server, with its token."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + ("" if token is None else f"?token={token}")


def serve(app: Starlette, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Answer on a socket until SIGINT or SIGTERM. Answers in progress have three seconds to end; a second Ctrl-C ends at once.

    Args:
        app: As ``guarded`` makes it.
        listening: As ``bound`` makes it; closed at the end.
        ready: Called once the server answers.

    Raises:
        UsageError: It cannot start, such as without a folder for temporary files.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="critical",  # errors are answered and reported by ``Headed``, and one at the start is raised below
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=LEAVING,
    )
    before = [(one, signal.signal(one, lambda *_: None)) for one in (signal.SIGINT, signal.SIGTERM)]  # uvicorn raises them again at its end
    server = Server(config)
    try:
        with suppress(SystemExit):  # uvicorn's way to say that it could not start
            server.run(sockets=[listening])
    finally:
        for one, handler in before:
            signal.signal(one, handler)
        listening.close()
    if not server.started:
        failure = getattr(app.state, "failure", None)
        raise UsageError(f"the server cannot start ({gist(failure) or 'ended at once'}); TMPDIR names the folder of its temporary files")


def pages(folder: Path, names: Sequence[str]) -> list[Route]:
    """Routes of the files of a page: ``index.html`` at ``/``, the others at their names.

    Args:
        folder: Of the files, part of the package.
        names: Files in it.
    """
    from starlette.requests import Request
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route

    kinds = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
    kinds |= {".svg": "image/svg+xml"}

    def route(name: str) -> Route:
        async def answer(request: Request) -> Response:
            return FileResponse(folder / name, media_type=kinds[Path(name).suffix], headers={"cache-control": "no-cache"})

        return Route("/" if name == "index.html" else f"/{name}", answer)

    return [route(name) for name in names]
