"""The timeline of a video: where its bars are."""

import pytest

from vtlvlm.segments.picture import ROWS, timeline_figure
from vtlvlm.segments.timeline import Segment


def bars(figure) -> list[tuple[float, float, float]]:
    """Left edge, width and middle height of each bar."""
    return [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in figure.axes[0].patches]


def test_truth_and_found_stand_one_above_the_other() -> None:
    truth, found = [Segment("wave", 1.0, 3.0), Segment("jump", 5.0, 6.0)], [Segment("wave", 1.5, 3.5, 0.8)]
    figure = timeline_figure([("truth", truth), ("found", found)], 10.0, "film.mp4")
    drawn = bars(figure)
    assert [one[:2] for one in drawn] == [(1.0, 2.0), (5.0, 1.0), (1.5, 2.0)]
    wave, jump, also = (one[2] for one in drawn)
    assert wave > also > jump  # the truth above what was found, the earlier action above the later one
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["wave", "jump"]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["truth", "found"]
    assert figure.axes[0].get_xlim() == (0, 10)


def test_many_actions_share_the_last_row_and_none_is_said() -> None:
    many = [Segment(f"action {number}", float(number), number + 0.5) for number in range(ROWS + 4)]
    figure = timeline_figure([("found", many)], 60.0, "film.mp4")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == ROWS
    assert labels[-1] == "5 other actions"
    assert len({height for _, _, height in bars(figure)}) == ROWS
    empty = timeline_figure([("found", [])], 60.0, "film.mp4")
    assert [text.get_text() for text in empty.axes[0].texts] == ["no action of the list"]


@pytest.mark.parametrize(("seconds", "said"), [(59.0, "minutes and seconds"), (7200.0, "hours, minutes and seconds")])
def test_the_axis_says_its_unit(seconds: float, said: str) -> None:
    assert timeline_figure([("found", [])], seconds, "x").axes[0].get_xlabel() == said
