"""Actions in long videos: segments with times, how they are decided, scored and written."""

from vtlvlm.segments.timeline import Segment

__all__ = ["Segment"]
