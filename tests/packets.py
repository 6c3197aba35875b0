"""Packets written bit by bit, and what the counters of pictures make of them."""

from vtlvlm.data.headers import Counter
from vtlvlm.data.pictures import counter


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
