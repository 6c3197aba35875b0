"""Measures `vtlvlm app`: seconds from a loaded model to an answered page, and a request's time over that of the recogniser alone."""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from vtlvlm.app.server import Settings, application
from vtlvlm.bench.data import camera_clips
from vtlvlm.bench.harness import Measurement, alternate, ratio
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.recognizer import ActionRecognizer, VideoRecognizer
from vtlvlm.web.serving import address_of, bound, serve


def measure(work: Path, model: Path, videos: Path | None, repeats: int) -> tuple[list[Measurement], dict[str, Any]]:
    """Serve a bundle on a free port of this machine, and send it a 4 s clip of 1080p.

    Args:
        work: Folder to write into.
        model: Bundle of videos.
        videos: Camera videos to make the clip from; None for rendered ones.
        repeats: Rounds, each of one request and one call of the recogniser.

    Raises:
        UsageError: The bundle reads no videos.
    """
    recognizer = ActionRecognizer.from_checkpoint(model)
    if not isinstance(recognizer, VideoRecognizer):
        raise UsageError(f"{model}: reads recordings of bodies, and the page shows videos; name a bundle of videos")
    clip = camera_clips(work, videos)["H.264"]
    listening = bound("127.0.0.1", 0)
    place = address_of(listening)
    opened = build_opener(ProxyHandler({})).open  # this machine is reached without a proxy
    request = Request(f"{place}api/classify", data=clip.read_bytes())
    answers: dict[str, Any] = {}
    found: dict[str, Any] = {}

    def asked() -> None:
        with opened(request) as answer:
            answers["page"] = json.load(answer)

    def alone() -> None:
        answers["alone"] = recognizer.classify(clip)

    def use() -> None:
        try:
            with opened(place) as page:
                page.read()
            found["ready"] = time.perf_counter() - began
            found["seconds"] = alternate({"request": asked, "recogniser": alone}, repeats=repeats, clock=time.perf_counter)
        except BaseException as error:
            found["error"] = error
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # ends the server

    began = time.perf_counter()
    user = threading.Thread(target=use)
    serve(application(recognizer, model.name, Settings(folder=work)), listening, user.start)
    user.join()
    if "error" in found:
        raise found["error"]
    over = ratio(found["seconds"], "request", "recogniser")
    middle = statistics.median(found["seconds"]["recogniser"])
    same = answers["page"]["actions"][0]["action"] == answers["alone"].actions[0][0]
    return [
        Measurement("from the loaded model to the page", found["ready"], "s", 1.0, "<=", "the first answer of the server"),
        Measurement("a request over the recogniser alone", over, "x", 1.05, "<=", f"{repeats} rounds, {middle:.2f} s a clip"),
        Measurement("both name the same action", float(same), "", 1.0, "=="),
    ], {"model": model.name, "repeats": repeats}
