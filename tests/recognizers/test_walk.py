"""From a video file to probabilities: the modules that CONTRIBUTING.md lists are those that run, in that order."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline import Pipeline

import vtlvlm
from vtlvlm import ActionRecognizer

PACKAGE = Path(vtlvlm.__file__).parent
MOST = 10
"""Modules on the way"""
BELOW = {
    *(f"data/{name}.py" for name in ("container", "headers", "nal_units", "pictures", "timestamps")),
    *(f"vtem/{name}.py" for name in ("clip_facts", "folding", "precision")),
    *(f"lvlm/{name}.py" for name in ("context", "vocabulary")),
}
"""What only ``data/video.py``, ``vtem/extractors.py``, or ``lvlm/reasoner.py`` and ``lvlm/scoring.py`` call, and what only long videos
need: a reader of the walk need not open them"""


def test_one_clip_walks_through_the_modules_that_are_listed(chain: Pipeline) -> None:
    recognizer = ActionRecognizer.from_checkpoint(chain.bundle)
    met: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and frame.f_code.co_name != "<module>":
            name = path.relative_to(PACKAGE).as_posix()
            if name not in met:
                met.append(name)

    sys.setprofile(note)
    try:
        recognizer.classify(chain.root / "S001C001P003R001A001_rgb.avi")
    finally:
        sys.setprofile(None)
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+\. `vtlvlm/([\w/]+\.py)`", text, re.MULTILINE)
    assert [name for name in met if name not in BELOW] == listed
    assert len(listed) <= MOST
