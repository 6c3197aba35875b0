"""Reads headers of coded packets: numbers of any width, and the base class of the picture counters."""

from __future__ import annotations

MANY = 4096
"""Most units that are read in a packet. A picture has tens of slices."""


class Unsure(Exception):
    """The packets' headers do not settle which pictures are shown."""


class Counter:
    """Base class of the picture counters. Call a counter with a stream's packets in order.

    Args:
        extradata: The stream's header.
    """

    def __init__(self, extradata: bytes) -> None:
        self._started = False

    def __call__(self, packet: memoryview) -> int:
        """The number of pictures that a packet shows.

        Raises:
            Unsure: Only a decoder can count the pictures.
        """
        raise NotImplementedError

    @property
    def settled(self) -> bool:
        """Whether all pictures counted so far are complete."""
        return True


class Bits:
    """Reads numbers of any width, first bit first.

    Raises:
        Unsure: The data ends too early.
    """

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), len(data) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise Unsure
        return (self._value >> self._left) & ((1 << count) - 1)

    def golomb(self) -> int:
        """An unsigned Exp-Golomb number (H.264, 9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
