"""Counts of codes, computed by hand and by plain loops."""

from collections import Counter, defaultdict

import numpy as np
import torch

from vtlvlm.dictionary.counting import SHOWN, count, neighbours


def test_two_sentences_by_hand() -> None:
    """Two clips, three windows of two cells, four codes. The windows last 1, 2 and 3 seconds."""
    ids = torch.tensor([[[0, 1], [0, 2], [0, 1]], [[1, 1], [0, 1], [0, -1]]]).flatten(1)
    spans = torch.tensor([[0.0, 1], [1, 3], [3, 6]]).expand(2, 3, 2)
    found = count([(ids, spans, torch.tensor([1, 0]))], num_codes=4, num_classes=2, windows=3)
    assert found.tally.counts.tolist() == [5, 5, 1, 0]
    assert found.tally.pairs.tolist() == [[2, 3], [3, 2], [0, 1], [0, 0]]
    assert found.tally.clips.tolist() == [[1, 1], [1, 1], [0, 1], [0, 0]]
    assert found.clips.tolist() == [2, 2, 1, 0]
    # code 0 stays 6 s in clip 0 and 2 + 3 s in clip 1; code 1: 1 and 3 s, then 1 s and 1 + 2 s; code 2: 2 s
    assert found.runs.tolist() == [2, 4, 1, 0]
    assert found.seconds[:3].tolist() == [[5, 5, 5], [1, 1, 3], [2, 2, 2]]
    assert found.seconds[3].isnan().all()
    # what follows in a cell: 1 -> 2 -> 1 and 1 -> 0; the unknown code ends a run and is no follower
    assert found.followers[:, 0].tolist() == [-1, 0, 1, -1]
    assert found.followers[1, :3].tolist() == [0, 2, -1]
    assert found.follower_shares[1, :3].tolist() == [0.5, 0.5, 0]


def test_random_sentences_by_loops() -> None:
    random = np.random.default_rng(0)
    windows, cells, codes, classes = 6, 4, 30, 3
    ids = torch.from_numpy(random.integers(0, codes // 2, (50, windows * cells)) * 2)  # odd codes never occur
    ids[:, cells:] = ids[:, :-cells].where(torch.from_numpy(random.random((50, (windows - 1) * cells)) < 0.4), ids[:, cells:])
    lengths = torch.from_numpy(random.uniform(0.1, 2, (50, windows))).float()
    ends = lengths.cumsum(1)
    spans = torch.stack([ends - lengths, ends], 2)
    labels = torch.from_numpy(random.integers(0, classes, 50))
    batches = [(ids[part], spans[part], labels[part]) for part in (slice(0, 7), slice(7, 50))]
    found = count(batches, codes, classes, windows)

    seconds, nexts = defaultdict(list), defaultdict(Counter)
    for clip in range(50):
        for cell in range(cells):
            line = ids[clip].view(windows, cells)[:, cell].tolist()
            start = 0
            for window in range(windows):
                if window + 1 == windows or line[window + 1] != line[window]:
                    seconds[line[window]].append(float(spans[clip, window, 1] - spans[clip, start, 0]))
                    if window + 1 < windows:
                        nexts[line[window]][line[window + 1]] += 1
                    start = window + 1
    for code in range(codes):
        own = sorted(seconds[code])
        assert found.runs[code] == len(own)
        if own:
            wanted = [own[int(share * (len(own) - 1))] for share in (0.1, 0.5, 0.9)]
            assert np.allclose(found.seconds[code], wanted, atol=1e-5)
        order = sorted(nexts[code].items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        total = sum(nexts[code].values())
        assert found.followers[code].tolist() == [other for other, _ in order] + [-1] * (SHOWN - len(order))
        assert np.allclose(found.follower_shares[code][: len(order)], [n / total for _, n in order])


def test_neighbours_point_the_same_way_and_occur() -> None:
    table = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [1, 0.01], [-1, 0]])
    codes, cosines = neighbours(table, torch.tensor([True, True, True, False, True]))
    assert codes[0].tolist() == [1, 2, 4, -1, -1]  # code 3 is nearest, but never occurs
    assert cosines[0, :3].tolist() == torch.tensor([2 / (4.01**0.5), 0.0, -1.0]).tolist()
    assert codes[3, 0] == 0  # a code that never occurs has neighbours all the same
    assert codes.shape == cosines.shape == (5, SHOWN)
