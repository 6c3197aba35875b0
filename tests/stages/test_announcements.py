import numpy as np
import pytest

from vtlvlm.stages.announcements import FEW_CLIPS, say_few_clips


def test_few_clips_are_counted_for_the_rarest_action(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    say_few_clips(np.array([0] * FEW_CLIPS + [1] * 4), 2)
    assert [message.split(":")[0] for message in caplog.messages] == [f"{FEW_CLIPS + 4} training clips, 4 of the rarest action"]


def test_an_action_without_clips_counts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    say_few_clips(np.zeros(FEW_CLIPS, dtype=np.int64), 2)
    assert "0 of the rarest action" in caplog.text


def test_enough_clips_are_passed_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    say_few_clips(np.arange(2).repeat(FEW_CLIPS), 2)
    assert not caplog.messages
