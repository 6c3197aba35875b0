"""How a batch is divided over processes and passes."""

import pytest

from vtlvlm.data.batching import micro_batch, passes, share_of
from vtlvlm.errors import UsageError


@pytest.mark.parametrize(
    ("batch", "most", "world", "used", "count"),
    [
        (128, None, 1, 128, 1),
        (128, None, 32, 4, 1),
        (128, 8, 1, 8, 16),
        (128, 8, 8, 8, 2),
        (128, 8, 16, 8, 1),
        (128, 8, 32, 4, 1),  # the paper's batch on four nodes
        (128, 8, 128, 1, 1),
        (120, 8, 4, 6, 5),  # 30 clips a process: 6 divides them, 8 does not
        (5, 2, 1, 1, 5),
    ],
)
def test_a_micro_batch_is_the_largest_that_divides_the_share(batch: int, most: int | None, world: int, used: int, count: int) -> None:
    assert micro_batch(batch, most, world) == used
    assert passes(batch, used, world, clips=1000) == count


def test_evaluations_run_on_any_number_of_processes() -> None:
    assert [micro_batch(128, 8, world) for world in (3, 11, 200)] == [8, 8, 1]
    assert micro_batch(128, None, 11) == 11


def test_processes_that_do_not_divide_the_batch() -> None:
    with pytest.raises(UsageError, match=r"batch_size=128 is not a multiple of the 24 processes: set --data\.batch_size 144"):
        share_of(128, 24)


def test_fewer_clips_than_a_batch_of_several_passes() -> None:
    """Lightning would step with a gradient that is divided by passes which were never made."""
    with pytest.raises(UsageError, match=r"batch_size=128 in 2 passes, but the split has only 100 .*: set --data\.batch_size 96 or lower"):
        passes(128, 8, 8, clips=100)
    assert passes(128, 16, 8, clips=100) == 1
