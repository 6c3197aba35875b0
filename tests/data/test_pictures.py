"""Headers of packets, made bit by bit after the standards."""

import pytest

from vtlvlm.data.pictures import Bits, Counter, Unsure, counter


def bits(text: str) -> bytes:
    """``"1 010 0000"`` as bytes, filled with zeros."""
    digits = text.replace(" ", "")
    digits += "0" * (-len(digits) % 8)
    return int(digits, 2).to_bytes(len(digits) // 8)


def made(codec: str, extradata: bytes = b"") -> Counter:
    found = counter(codec, extradata)
    assert found is not None
    return found


def counts(codec: str, *packets: bytes, extradata: bytes = b"") -> list[int]:
    count = made(codec, extradata)
    return [count(memoryview(packet)) for packet in packets]


def test_exp_golomb_numbers() -> None:
    reader = Bits(bits("1 010 011 00100 0001000"))  # H.264, table 9-2
    assert [reader.golomb() for _ in range(5)] == [0, 1, 2, 3, 7]
    with pytest.raises(Unsure):
        reader.take(9)


def picture(number: int, first: str = "1", head: int = 0x41) -> bytes:
    """A slice: its first macroblock, type and parameter set, then the number of the picture in 4 bits."""
    return b"\0\0\1" + bytes([head]) + bits(f"{first} 00110 1 {number:04b} 1")


IDR, P, NOT_FIRST, SEI, END = picture(0, head=0x65), picture(1), picture(1, "010"), b"\0\0\1\x06\x05", b"\0\0\1\x0a\x00"


def sps(frames_only: int) -> bytes:
    """Baseline profile; then id, frame numbers, order type 2, references, gaps, width and height, as Exp-Golomb numbers."""
    return b"\0\0\1\x67" + bits(f"01000010 00000000 00001010 1 1 011 1 0 00110 00100 {frames_only}")


def test_h264_counts_the_first_slices_of_frames() -> None:
    assert counts("h264", sps(1) + SEI + IDR, P + NOT_FIRST, P) == [1, 1, 1]


def test_h264_whose_pictures_are_numbered_on() -> None:
    """Those that no others refer to (0x01) have the number of the next; 16 pictures on it begins at 0, and at every IDR picture."""
    numbers = [picture(number % 16, head=head) for number in range(1, 20) for head in (0x01, 0x41)]
    assert sum(counts("h264", sps(1) + IDR, *numbers, IDR, P)) == 1 + 38 + 2


@pytest.mark.parametrize(
    "packets",
    [
        [P],  # no header
        [SEI],  # no picture
        [b"HEADER" + P],  # begins with a picture that refers to others
        [b"HEADER" + IDR, P + P],  # two pictures
        [b"HEADER" + IDR, NOT_FIRST],  # the first slice is missing
        [b"HEADER" + IDR, picture(2)],  # picture 1 is missing
        [b"HEADER" + IDR, P, picture(2), picture(1)],
        [b"HEADER" + IDR, P + END, P],  # a new sequence that begins so
        [b"FIELDS" + IDR],  # perhaps interlaced
    ],
)
def test_h264_that_only_a_decoder_understands(packets: list[bytes]) -> None:
    with pytest.raises(Unsure):
        counts("h264", *(packet.replace(b"HEADER", sps(1)).replace(b"FIELDS", sps(0)) for packet in packets))


def hevc(kind: int, first: int = 1, after: str = "0000000", layer: int = 0) -> bytes:
    return b"\0\0\1" + bits(f"0 {kind:06b} {layer:06b} 001") + bits(f"{first} {after}")


def test_hevc_counts_the_base_layer() -> None:
    assert counts("hevc", hevc(19) + hevc(19, first=0), hevc(1) + hevc(1, layer=1), hevc(21), hevc(9)) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "packets",
    [
        [hevc(21)],  # open group at the start
        [hevc(19), hevc(16)],  # a splice
        [hevc(19), hevc(1) + hevc(36), hevc(21)],  # a new sequence that begins so
        [hevc(19), hevc(20, after="1000000")],  # earlier pictures are not shown
        [hevc(19) + b"\0\0\1" + bits("0 100010 000000 001") + bits("1 1 0 1 0000")],  # a picture's own flag says whether it is shown
        [hevc(19), hevc(1) + hevc(1)],
        [b"\0\0\1" + bits("0 100111 000000 001")],
    ],
)
def test_hevc_that_only_a_decoder_understands(packets: list[bytes]) -> None:
    with pytest.raises(Unsure):
        counts("hevc", *packets)


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


def test_packets_of_endless_units_are_left_to_the_decoder() -> None:
    for codec, packet in (("h264", sps(1) + IDR + SEI * 5000), ("hevc", hevc(19) + SEI * 5000), ("av1", obu(2, b"") * 5000)):
        with pytest.raises(Unsure):
            counts(codec, packet)


def test_other_codecs_are_not_known() -> None:
    assert counter("mjpeg", b"") is None
    assert counter("h264", b"\1\x42\0\x0a\xff\xe1\0\2\x67\x42") is None  # its header is cut
