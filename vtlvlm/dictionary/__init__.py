"""The event dictionary: what each code of a codebook is, counted on training clips."""

from vtlvlm.dictionary.entries import EventDictionary

__all__ = ["EventDictionary"]
