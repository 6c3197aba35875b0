"""The measured search on drawn clips, with every figure found by another route."""

from pathlib import Path

import numpy as np
import pytest
from galleries import gallery
from sklearn.metrics import average_precision_score

from vtlvlm.errors import DataError
from vtlvlm.report.predictions import Predictions
from vtlvlm.retrieval import EventSearch, evaluation
from vtlvlm.retrieval.evaluation import METHODS, OURS, PROBABILITIES, evaluate, measure
from vtlvlm.retrieval.stored import make_index


def search_and_predictions(seed: int = 0) -> tuple[EventSearch, Predictions]:
    known = gallery(people=8, seed=seed)
    rng = np.random.default_rng(seed)
    rows = known.testing[::-1]  # in another order than the cache's
    probabilities = rng.dirichlet(np.ones(3), size=len(rows)) + 0.8 * np.eye(3)[known.labels[rows]]
    probabilities /= probabilities.sum(1, keepdims=True)
    table = Predictions(known.names[rows].astype(str), known.labels[rows], probabilities.argmax(1), probabilities, known.classes)
    return EventSearch(known, make_index(known)), table


def test_precision_of_the_probabilities_is_that_of_scikit_learn() -> None:
    found, table = search_and_predictions()
    run = measure(found, table)
    known = found.gallery
    assert len(run.queries) == len(known.testing) == run.clips
    units = table.probabilities / np.linalg.norm(table.probabilities, axis=1, keepdims=True)
    people, labels = (np.array([column[known.names == name][0] for name in table.clips]) for column in (known.people, known.labels))
    for query, score in zip(run.queries, run.scores[PROBABILITIES], strict=True):
        row = table.clips.tolist().index(query)
        others = people != people[row]
        expected = average_precision_score(labels[others] == labels[row], (units @ units[row])[others])
        assert score.average_precision == pytest.approx(expected)


def test_every_method_is_better_than_chance_and_ours_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [search_and_predictions(seed) for seed in (0, 1)]
    monkeypatch.setattr(evaluation.EventSearch, "open", lambda events: pairs[int(events.name)][0])
    monkeypatch.setattr(evaluation, "read_predictions", lambda table: pairs[int(table.name)][1])
    found = evaluate([(Path(str(seed)), Path(str(seed))) for seed in (0, 1)])
    facts = found.facts
    assert (facts["seeds"], facts["people"], facts["queries"]) == (2, 4, 24)
    means = {name: np.mean(facts["methods"][name]["mAP"]) for name in METHODS}
    assert all(mean > facts["chance"]["mAP"] + 0.1 for mean in means.values())
    assert means[OURS] == max(means.values())
    assert facts["methods"][OURS]["mAP of each action"].keys() == {"action 0", "action 1", "action 2"}
    gains = {(row["ours"], row["theirs"]): row["mAP"] for row in facts["differences"]}
    assert gains[OURS, PROBABILITIES].startswith(f"{means[OURS] - means[PROBABILITIES]:+.3f} [")
    assert found.table.rows[0][0] == OURS
    assert "±" in found.table.rows[0][1]


def test_views_by_other_cameras_are_told_apart() -> None:
    """They are the same person's, so never relevant; how often they come first is a figure of its own."""
    found, table = search_and_predictions()
    run = measure(found, table)
    assert {len(values) for values in run.twins.values()} == {len(run.queries)}  # two cameras: each clip has another view
    single = EventSearch(found.gallery._replace(performances=np.full(len(found), "", dtype=object)), found.index)
    assert measure(single, table).twins[OURS] == []
    assert [s.average_precision for s in measure(single, table).scores[OURS]] == [s.average_precision for s in run.scores[OURS]]


def test_what_cannot_be_measured() -> None:
    found, table = search_and_predictions()
    fewer = Predictions(table.clips[1:], table.labels[1:], table.recognised[1:], table.probabilities[1:], table.classes)
    with pytest.raises(DataError, match="the predictions lack 1 of 24 test clips, the first being P7 A2 C1"):
        measure(found, fewer)
    none = EventSearch(found.gallery._replace(testing=np.zeros(0, np.int64), unlearned="of a drawn split"), found.index)
    with pytest.raises(DataError, match="no test clips that are known as such: of a drawn split"):
        measure(none, table)
    unknown = EventSearch(found.gallery._replace(people=np.full(len(found), "", dtype=object)), found.index)
    with pytest.raises(DataError, match="the person or the action is unknown"):
        measure(unknown, table)
