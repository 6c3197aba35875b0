"""A server on this machine whose connections give what a test says."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction

import av
import numpy as np


def transport_stream(shades: list[int], rate: int = 25, each: int = 5, width: int = 64) -> bytes:
    """An MPEG transport stream whose pictures, 64 pixels high, have these shades, each for some frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=rate)
        stream.width, stream.height = width, 64
        stream.pix_fmt, stream.time_base, stream.gop_size, stream.max_b_frames = "yuv420p", Fraction(1, rate), 5, 0
        for shade in np.repeat(shades, each):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, width, 3), shade, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


@contextmanager
def server(*answers: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serves one answer a connection over HTTP, then refuses; yields the address."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        for answer in answers:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
                with suppress(OSError):
                    answer(connection)
        listening.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/live.ts"
    finally:
        ended.set()
        listening.close()


def sends(content: bytes, then: float = 0.0) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(content)
        time.sleep(then)

    return answer
