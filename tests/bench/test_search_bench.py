"""The bench on few clips."""

from pathlib import Path

import pytest

from vtlvlm.bench import search


def test_figures_of_a_small_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CLIPS", 300)
    monkeypatch.setattr(search, "CODES", 64)
    monkeypatch.setattr(search, "LEARNED", 200)
    monkeypatch.setattr(search, "ACTIONS", 5)
    figures, facts = search.measure(tmp_path, repeats=2)
    assert facts["clips"] == 300
    assert [figure.target for figure in figures] == [1, 1, 1, None, None]
    assert all(figure.value > 0 for figure in figures)
    assert all(figure.holds for figure in figures[:3])


def test_cells_keep_their_codes_and_actions_differ() -> None:
    found = search.drawn_gallery(400, 256)
    stays = (found.ids[:, 1:] == found.ids[:, :-1]).mean()
    assert 0.5 < stays < 0.65
    assert found.ids.max() < 256
