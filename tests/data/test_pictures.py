"""Headers of packets, made bit by bit after the standards."""

import pytest
from packets import bits, counts, made

from vtlvlm.data.headers import Unsure
from vtlvlm.data.pictures import counter

LAYER = b"\0\0\1\x20" + bits("0 00000001 0 0001 0 00 1 0000000000011001 1")  # 25 ticks a second: a time takes 5 bits
PACKED = b"\0\0\1\xb2DivX503b1393p"


def plane(kind: int, coded: int = 1) -> bytes:
    return b"\0\0\1\xb6" + bits(f"{kind:02b} 10 1 00011 1 {coded} 0000")


def test_mpeg4_counts_coded_planes() -> None:
    assert counts("mpeg4", LAYER + plane(0), plane(1), plane(2), plane(1, coded=0)) == [1, 1, 1, 0]
    assert counts("mpeg4", plane(0), plane(1), extradata=LAYER) == [1, 1]


def test_packed_mpeg4_is_settled_when_every_plane_had_its_packet() -> None:
    count = made("mpeg4", LAYER + PACKED)
    assert [count(memoryview(packet)) for packet in (plane(0), b"\x7f", plane(1) + plane(2))] == [1, 0, 2]
    assert not count.settled
    assert count(memoryview(plane(1, coded=0))) == 0
    assert count.settled


@pytest.mark.parametrize("packets", [[plane(1)], [plane(0), plane(2)], [b"\0" * 3000]])
def test_mpeg4_that_only_a_decoder_understands(packets: list[bytes]) -> None:
    with pytest.raises(Unsure):
        counts("mpeg4", *packets, extradata=LAYER)


def test_vp8_frames_are_shown_or_hidden() -> None:
    assert counts("vp8", bits("000 1 000 0"), bits("000 0 000 1"), bits("000 1 000 1")) == [1, 0, 1]
    with pytest.raises(Unsure):
        counts("vp8", bits("000 1 000 1"))


def test_vp9_superframes_hidden_frames_and_frames_shown_again() -> None:
    key, hidden, again = bits("10 00 0 0 1 0"), bits("10 00 0 1 0 0"), bits("10 00 1 000")
    mark = bits("110 00 001")
    assert counts("vp9", key, hidden + key + mark + b"\1\1" + mark, again, hidden) == [1, 1, 1, 0]
    with pytest.raises(Unsure):
        counts("vp9", bits("10 00 0 1 1 0"))


def obu(kind: int, payload: bytes) -> bytes:
    return bits(f"0 {kind:04b} 0 1 0") + bytes([len(payload)]) + payload


def test_av1_hidden_frames_and_frames_shown_again() -> None:
    sequence, key, hidden, again = obu(1, bits("000 0 0")), obu(6, bits("0 00 1")), obu(6, bits("0 01 0")), obu(3, bits("1 000"))
    assert counts("av1", sequence + key, obu(2, b"") + hidden, again) == [1, 0, 1]
    for unclear in (key, obu(1, bits("000 0 1")), bits("0 0110 1 1 0") + b"\0\1\x10", b"\x32\xff\xff\xff\xff\xff\xff\xff\xff\xff"):
        with pytest.raises(Unsure):
            counts("av1", unclear)


def test_a_packet_of_endless_units_is_left_to_the_decoder() -> None:
    with pytest.raises(Unsure):
        counts("av1", obu(2, b"") * 5000)


def test_other_codecs_are_not_known() -> None:
    assert counter("mjpeg", b"") is None
    assert counter("h264", b"\1\x42\0\x0a\xff\xe1\0\2\x67\x42") is None  # its header is cut
