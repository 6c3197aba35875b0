"""Counts the pictures that a coded packet shows, from its headers and without decoding.

Not every packet shows a picture. VP8, VP9 and AV1 have hidden reference frames, and MPEG-4 has empty frames. H.264 and HEVC streams may
begin with pictures that lack their references. A counter raises ``Unsure`` if the headers do not settle the number.

``nal_units`` counts H.264 and HEVC. Sources of the other codecs: MPEG-4 is ISO/IEC 14496-2 (6.2.3, 6.2.5), VP8 is RFC 6386 (9.1), VP9 and
AV1 are the bitstream specifications of the Alliance for Open Media (VP9: 6.2 and annex B; AV1: 5.3 to 5.9).
"""

from __future__ import annotations

import re

from vtlvlm.data.headers import MANY, Bits, Counter, Unsure
from vtlvlm.data.nal_units import H264, HEVC

_HEAD = 2048  # bytes of an MPEG-4 packet in which its first plane begins


def counter(codec: str, extradata: bytes) -> Counter | None:
    """Make a counter for a stream.

    Args:
        codec: FFmpeg's name of the codec, such as ``h264``.
        extradata: The stream's header.

    Returns:
        A counter, or None if only a decoder can count the pictures.
    """
    kinds: dict[str, type[Counter]] = {"h264": H264, "hevc": HEVC, "mpeg4": MPEG4, "vp8": VP8, "vp9": VP9, "av1": AV1}
    try:
        return kinds[codec](extradata) if codec in kinds else None
    except Unsure:
        return None


class MPEG4(Counter):
    """Counts coded video object planes.

    In packed streams (DivX, Xvid) a packet holds two planes, and a later packet none. Unsure of streams whose first plane is not an I-VOP,
    or whose second is a B-VOP.
    """

    _START = b"\0\0\1\xb6"

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._ticks, self._types, self._owed, self._packed = 0, 0, 0, False
        self._layer(extradata)

    def _layer(self, data: bytes) -> None:
        """Read the number of bits of a plane's time. The encoder's name shows whether packets hold two planes."""
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
        if not packet or (not self._started and packet[0] & 1):  # the first frame is no key frame
            raise Unsure
        self._started = True
        return (packet[0] >> 4) & 1


class VP9(Counter):
    """Counts frames that are shown or shown again, also inside superframes."""

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
        if bits.take(1) and not self._started:  # the first frame is no key frame
            raise Unsure
        self._started = True
        return bits.take(1)


class AV1(Counter):
    """Counts frames that are shown or shown again. Unsure of layered streams and of still pictures."""

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
            if head & 4 or units > MANY:  # an extension: layers
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
        if not self._described or (bits.take(2) != 0 and not self._started):  # the first frame is no key frame
            raise Unsure
        self._started = True
        return bits.take(1)


def _leb128(data: memoryview, position: int) -> tuple[int, int]:
    """Read a number in groups of seven bits, lowest first. Returns the number and the position after it."""
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
