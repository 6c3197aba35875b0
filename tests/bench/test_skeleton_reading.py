"""The usual parser of .skeleton files gives what ours gives, and takes several times as long."""

from pathlib import Path

import numpy as np
from skeletons import REAL_IDS, moving_body, of_bodies

from vtlvlm.bench.skeleton_reading import line_by_line, skeletons
from vtlvlm.skeleton.reading import parse


def test_both_parsers_give_the_same_records(tmp_path: Path) -> None:
    """Two bodies, one of which comes later and goes earlier, with ids that are one number as floats."""
    random = np.random.default_rng(0)
    first, second = moving_body(random, 20), moving_body(random, 11)
    file = tmp_path / "a.skeleton"
    file.write_text(of_bodies({REAL_IDS[0]: (0, first), REAL_IDS[1]: (4, second)}, 20))
    usual, ours = line_by_line(file), parse(file.read_bytes(), file)
    assert usual.ids == ours.ids == REAL_IDS
    for one, other in zip(usual, ours, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    np.testing.assert_allclose(usual.joints[usual.body == 1], second, atol=1e-6)


def test_the_figures_are_ratios_of_both(tmp_path: Path) -> None:
    one, two = skeletons(tmp_path, repeats=3)
    assert [figure.work.partition(",")[0] for figure in (one, two)] == [".skeleton file of a person", ".skeleton file of two people"]
    for figure, people in ((one, 1), (two, 2)):
        assert figure.target == 5
        assert figure.value is not None
        assert figure.value > 2  # processor time, also on a busy machine
        (file,) = tmp_path.glob(f"{'a-person' if people == 1 else 'two-people'}.skeleton")
        assert len(line_by_line(file).ids) == people
