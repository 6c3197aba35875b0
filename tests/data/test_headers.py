"""Numbers read from headers that are made bit by bit."""

import pytest
from packets import bits

from vtlvlm.data.headers import Bits, Unsure


def test_exp_golomb_numbers() -> None:
    reader = Bits(bits("1 010 011 00100 0001000"))  # H.264, table 9-2
    assert [reader.golomb() for _ in range(5)] == [0, 1, 2, 3, 7]
    with pytest.raises(Unsure):
        reader.take(9)
