"""Counts pictures for the codecs with NAL units: H.264 and HEVC.

Sources: H.264 is ITU-T H.264 (7.3.1 to 7.3.3), HEVC is ITU-T H.265 (7.3.1 to 7.3.6).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from vtlvlm.data.headers import MANY, Bits, Counter, Unsure


def _units(packet: memoryview, length: int) -> Iterator[memoryview]:
    """The NAL units of a packet. A size of ``length`` bytes precedes each unit, or a start code if ``length`` is 0.

    Raises:
        Unsure: The packet has thousands of units.
    """
    yield from _few(_lengthy(packet, length) if length else _started(packet))


def _few(units: Iterator[memoryview]) -> Iterator[memoryview]:
    for number, unit in enumerate(units):
        if number >= MANY:
            raise Unsure
        yield unit


def _lengthy(packet: memoryview, length: int) -> Iterator[memoryview]:
    position = 0
    while position + length < len(packet):
        start = position + length
        position = start + int.from_bytes(packet[position:start])
        yield packet[start:position]


def _started(packet: memoryview) -> Iterator[memoryview]:
    data = bytes(packet)
    start = data.find(b"\0\0\1") + 3
    while start > 2:
        end = data.find(b"\0\0\1", start)
        yield packet[start : end if end >= 0 else len(packet)]
        start = end + 3


def _unescaped(unit: memoryview, most: int = 256) -> bytes:
    return bytes(unit[:most]).replace(b"\0\0\3", b"\0\0")


class H264(Counter):
    """Counts the pictures that begin in a packet.

    Unsure of streams that may be interlaced, since a packet can be half a frame. Unsure of streams that lack a reference picture: at the
    start, or in the middle, where the picture numbers leap.
    """

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._length, self._progressive = 0, False
        self._width, self._planes, self._number = 0, False, 0
        if extradata[:1] == b"\1" and len(extradata) > 6:  # avcC
            self._length = (extradata[4] & 3) + 1
            for unit in islice(_units(memoryview(extradata)[6:], 2), extradata[5] & 31):
                self._header(unit)
        else:
            for unit in _units(memoryview(extradata), 0):
                self._header(unit)

    def _header(self, unit: memoryview) -> None:
        if len(unit) and unit[0] & 31 == 7:
            self._progressive, width, self._planes = _sequence(Bits(_unescaped(unit[1:])))
            if not self._progressive or width != (self._width or width):
                raise Unsure
            self._width = width

    def __call__(self, packet: memoryview) -> int:
        shown = 0
        for unit in _units(packet, self._length):
            if len(unit) < 2:
                continue
            kind = unit[0] & 31
            if kind in (1, 5):
                if not self._started and kind != 5:
                    raise Unsure
                self._started = True
                if unit[1] >> 7:  # first_mb_in_slice is 0
                    shown += 1
                    self._follow(unit)
            elif kind in (2, 3, 4):  # data partitions
                raise Unsure
            elif kind == 7:
                self._header(unit)
            elif kind == 10:  # end of sequence
                self._started = False
        if shown != 1 or not self._progressive:  # a packet without a picture is damaged
            raise Unsure
        return shown

    def _follow(self, unit: memoryview) -> None:
        """Compare a picture's ``frame_num`` with that of the last reference picture (7.4.3)."""
        bits = Bits(_unescaped(unit[1:], 24))
        for _ in range(3):
            bits.golomb()
        if self._planes:
            bits.take(2)
        number = bits.take(self._width)
        if unit[0] & 31 == 1 and (number - self._number) % (1 << self._width) > 1:
            raise Unsure
        if unit[0] & 0x60 or unit[0] & 31 == 5:
            self._number = number


def _sequence(bits: Bits) -> tuple[bool, int, bool]:
    """Read a sequence parameter set: ``frame_mbs_only_flag``, the number of bits of ``frame_num``, ``separate_colour_plane_flag``."""
    profile, planes = bits.take(8), False
    bits.take(16)
    bits.golomb()
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.golomb()
        if chroma == 3:
            planes = bool(bits.take(1))
        bits.golomb()
        bits.golomb()
        bits.take(1)
        if bits.take(1):  # scaling matrices
            for number in range(8 if chroma != 3 else 12):
                if bits.take(1):
                    _skip_scaling(bits, 16 if number < 6 else 64)
    width = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    return bool(bits.take(1)), width, planes


def _skip_scaling(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            coded = bits.golomb()
            following = (last + ((coded + 1) // 2 if coded % 2 else -(coded // 2))) % 256
        last = following or last


class HEVC(Counter):
    """Counts the pictures of the base layer that begin in a packet.

    Unsure if pictures may be held back: at a start without an IDR picture, at a splice, and with ``no_output_of_prior_pics_flag`` or
    ``output_flag_present_flag``.
    """

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._length = 0
        if extradata[:1] == b"\1" and len(extradata) > 22:  # hvcC
            self._length = (extradata[21] & 3) + 1
            position = 23
            for _ in range(extradata[22]):
                count = int.from_bytes(extradata[position + 1 : position + 3])
                position += 3
                for _ in range(count):
                    size = int.from_bytes(extradata[position : position + 2])
                    self._header(memoryview(extradata)[position + 2 : position + 2 + size])
                    position += 2 + size
        else:
            for unit in _units(memoryview(extradata), 0):
                self._header(unit)

    def _header(self, unit: memoryview) -> None:
        if len(unit) > 2 and (unit[0] >> 1) & 63 == 34:  # picture parameter set
            bits = Bits(_unescaped(unit[2:], 16))
            bits.golomb()
            bits.golomb()
            bits.take(1)
            if bits.take(1):
                raise Unsure

    def __call__(self, packet: memoryview) -> int:
        shown = 0
        for unit in _units(packet, self._length):
            if len(unit) < 3 or unit[0] & 1 or unit[1] >> 3:  # other layers
                continue
            kind = (unit[0] >> 1) & 63
            if kind < 32:
                random_access = 16 <= kind <= 23
                if kind in (16, 17, 18) or (not self._started and kind not in (19, 20)) or (random_access and unit[2] & 0x40):
                    raise Unsure
                self._started = True
                shown += unit[2] >> 7
            elif kind in (36, 37):  # end of sequence, of bitstream
                self._started = False
            else:
                self._header(unit)
        if shown != 1:  # a packet without a picture is damaged
            raise Unsure
        return shown
