"""Search over event sentences: clips like a clip, clips of an action or a sentence, and patterns of codes."""

from vtlvlm.retrieval.search import EventSearch

__all__ = ["EventSearch"]
