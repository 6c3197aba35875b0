"""How many pictures a coded packet shows, read from its headers without decoding it.

A packet need not show a picture: VP8, VP9 and AV1 have hidden reference frames, MPEG-4 has empty ones, H.264 and HEVC may begin with
pictures that nothing can be predicted from. Where the headers do not settle it, ``Unsure`` is raised, and only a decoder can tell.

Sources: H.264 is ITU-T H.264 (7.3.1 to 7.3.3), HEVC is ITU-T H.265 (7.3.1 to 7.3.6), MPEG-4 is ISO/IEC 14496-2 (6.2.3, 6.2.5), VP8 is
RFC 6386 (9.1), VP9 and AV1 are the bitstream specifications of the Alliance for Open Media (VP9: 6.2 and annex B; AV1: 5.3 to 5.9).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

_HEAD = 2048  # bytes of an MPEG-4 packet in which its first plane begins
_MANY = 4096  # units of a packet that are read, at most: a picture has tens of slices


class Unsure(Exception):
    """The headers of the packets do not say which pictures are shown."""


class Counter:
    """Base of the counters of pictures. A counter is given a stream's packets in order.

    Args:
        extradata: The stream's header.
    """

    def __init__(self, extradata: bytes) -> None:
        self._progress = False

    def __call__(self, packet: memoryview) -> int:
        """Pictures that a packet shows.

        Raises:
            Unsure: Only a decoder can tell.
        """
        raise NotImplementedError

    @property
    def settled(self) -> bool:
        """Whether the packets so far hold all the data of their pictures."""
        return True


def counter(codec: str, extradata: bytes) -> Counter | None:
    """The counter of a stream's pictures.

    Args:
        codec: FFmpeg's name of the codec, such as ``h264``.
        extradata: The stream's header.

    Returns:
        A counter, or None if only a decoder can tell.
    """
    kinds: dict[str, type[Counter]] = {"h264": H264, "hevc": HEVC, "mpeg4": MPEG4, "vp8": VP8, "vp9": VP9, "av1": AV1}
    try:
        return kinds[codec](extradata) if codec in kinds else None
    except Unsure:
        return None


class Bits:
    """Reads numbers of any width, first bit first.

    Raises:
        Unsure: The data end.
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


def _units(packet: memoryview, length: int) -> Iterator[memoryview]:
    """The NAL units of a packet. Each follows its size, a number of ``length`` bytes, or a start code if ``length`` is 0.

    Raises:
        Unsure: There are thousands of them.
    """
    yield from _few(_lengthy(packet, length) if length else _started(packet))


def _few(units: Iterator[memoryview]) -> Iterator[memoryview]:
    for number, unit in enumerate(units):
        if number >= _MANY:
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

    Unsure of streams that may be interlaced (a packet can be half a frame), and of streams without a picture that others refer to: at the
    start, or in the middle, where the numbers of the pictures then leap.
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
                if not self._progress and kind != 5:
                    raise Unsure
                self._progress = True
                if unit[1] >> 7:  # first_mb_in_slice is 0
                    shown += 1
                    self._follow(unit)
            elif kind in (2, 3, 4):  # data partitions
                raise Unsure
            elif kind == 7:
                self._header(unit)
            elif kind == 10:  # end of sequence
                self._progress = False
        if shown != 1 or not self._progressive:  # no picture at all: a damaged packet
            raise Unsure
        return shown

    def _follow(self, unit: memoryview) -> None:
        """Compare ``frame_num`` of a picture with that of the last one that others refer to (7.4.3)."""
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
    """Of a sequence parameter set: ``frame_mbs_only_flag``, the bits of ``frame_num``, ``separate_colour_plane_flag``."""
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

    Unsure where pictures may be held back: a start that is not an IDR picture, a splice, ``no_output_of_prior_pics_flag``,
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
                if kind in (16, 17, 18) or (not self._progress and kind not in (19, 20)) or (random_access and unit[2] & 0x40):
                    raise Unsure
                self._progress = True
                shown += unit[2] >> 7
            elif kind in (36, 37):  # end of sequence, of bitstream
                self._progress = False
            else:
                self._header(unit)
        if shown != 1:  # no picture at all: a damaged packet
            raise Unsure
        return shown


class MPEG4(Counter):
    """Counts coded video object planes.

    In packed streams (DivX, Xvid) a packet holds two, and a later one none. Unsure of streams that do not begin with an I-VOP, or in which
    a B-VOP comes second.
    """

    _START = b"\0\0\1\xb6"

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._ticks, self._types, self._owed, self._packed = 0, 0, 0, False
        self._layer(extradata)

    def _layer(self, data: bytes) -> None:
        """Read how many bits a plane's time has, and whether packets hold two planes: the encoder appends that to its name."""
        self._packed = self._packed or re.search(rb"DivX\d+(?:b|Build)\d+p", data) is not None
        start = next((at for code in range(0x20, 0x30) if (at := data.find(bytes((0, 0, 1, code)))) >= 0), -1)
        if start < 0:
            return
        bits = Bits(data[start + 4 : start + 64])
        bits.take(9)
        if bits.take(1):
            bits.take(7)
        if bits.take(4) == 15:
            bits.take(16)
        if bits.take(1):
            bits.take(3)
            if bits.take(1):
                bits.take(79)
        if bits.take(2):  # not rectangular
            raise Unsure
        bits.take(1)
        self._ticks = max(1, (bits.take(16) - 1).bit_length())

    def __call__(self, packet: memoryview) -> int:
        data = bytes(packet if self._packed else packet[:_HEAD])
        at, shown = data.find(self._START), 0
        if at < 0 and len(packet) > len(data):
            raise Unsure
        if at > 0:
            self._layer(data[:at])
            data = bytes(packet)
        while at >= 0:
            shown += self._coded(data[at + 4 : at + 20])
            at = data.find(self._START, at + 4) if self._packed else -1
        self._owed = max(0, self._owed + shown - 1)
        if self._owed > 1:
            raise Unsure
        return shown

    @property
    def settled(self) -> bool:
        return not self._owed

    def _coded(self, plane: bytes) -> bool:
        bits = Bits(plane)
        kind = bits.take(2)
        while bits.take(1):
            pass
        bits.take(1)
        if not self._ticks:
            raise Unsure
        bits.take(self._ticks + 1)
        coded = bool(bits.take(1))
        if coded and self._types < 2:
            if kind != 0 if self._types == 0 else kind == 2:
                raise Unsure
            self._types += 1
        return coded


class VP8(Counter):
    """Counts frames with ``show_frame``."""

    def __call__(self, packet: memoryview) -> int:
        if not packet or (not self._progress and packet[0] & 1):  # begins with no key frame
            raise Unsure
        self._progress = True
        return (packet[0] >> 4) & 1


class VP9(Counter):
    """Counts frames that are shown or shown again, in superframes too."""

    def __call__(self, packet: memoryview) -> int:
        return sum(self._frame(frame) for frame in self._frames(packet))

    def _frames(self, packet: memoryview) -> list[memoryview]:
        mark = packet[-1] if packet else 0
        count, width = (mark & 7) + 1, ((mark >> 3) & 3) + 1
        index = len(packet) - 2 - count * width
        if mark & 0xE0 != 0xC0 or index < 0 or packet[index] != mark:
            return [packet]
        frames, position = [], 0
        for number in range(count):
            at = index + 1 + number * width
            size = int.from_bytes(packet[at : at + width], "little")
            frames.append(packet[position : position + min(size, 4)])
            position += size
        return frames

    def _frame(self, frame: memoryview) -> int:
        bits = Bits(bytes(frame[:4]))
        if bits.take(2) != 2:
            raise Unsure
        if bits.take(1) + 2 * bits.take(1) == 3:
            bits.take(1)
        if bits.take(1):  # show_existing_frame
            return 1
        if bits.take(1) and not self._progress:  # begins with no key frame
            raise Unsure
        self._progress = True
        return bits.take(1)


class AV1(Counter):
    """Counts frames that are shown or shown again. Unsure of streams in layers, and of still pictures."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._described = False
        if extradata[:1] == b"\x81":  # av1C
            self(memoryview(extradata)[4:])

    def __call__(self, packet: memoryview) -> int:
        shown, position, units = 0, 0, 0
        while position < len(packet):
            units += 1
            head = packet[position]
            if head & 4 or units > _MANY:  # an extension: layers
                raise Unsure
            position += 1
            size = len(packet) - position
            if head & 2:
                size, position = _leb128(packet, position)
            shown += self._unit((head >> 3) & 15, bytes(packet[position : position + min(size, 4)]))
            position += size
        return shown

    def _unit(self, kind: int, payload: bytes) -> int:
        if kind == 1:  # sequence header
            bits = Bits(payload)
            bits.take(4)
            self._described = True
            if bits.take(1):  # reduced_still_picture_header
                raise Unsure
        if kind not in (3, 6):  # frame header, frame
            return 0
        bits = Bits(payload)
        if bits.take(1):  # show_existing_frame
            return 1
        if not self._described or (bits.take(2) != 0 and not self._progress):  # begins with no key frame
            raise Unsure
        self._progress = True
        return bits.take(1)


def _leb128(data: memoryview, position: int) -> tuple[int, int]:
    """A number of groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for number in range(8):
        if position >= len(data):
            raise Unsure
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * number)
        if byte < 0x80:
            return value, position
    raise Unsure
