"""Packets of NAL units, made bit by bit after the standards."""

import pytest
from packets import bits, counts

from vtlvlm.data.headers import Unsure


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


def test_packets_of_endless_units_are_left_to_the_decoder() -> None:
    for codec, packet in (("h264", sps(1) + IDR + SEI * 5000), ("hevc", hevc(19) + SEI * 5000)):
        with pytest.raises(Unsure):
            counts(codec, packet)
