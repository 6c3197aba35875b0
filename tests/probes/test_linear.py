"""Linear probes: honest selection, exact reduction, and what each view can know."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from vtlvlm.errors import DataError
from vtlvlm.probes.linear import AT_ONCE, STRENGTHS, ProbeResult, best_probe, clip_vectors, fit_probe, linear_probe, probe_suite

A = 4


def people(num: int = 120, dims: int = 40, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors = class direction + the person's own offset + noise; labels; persons 0..9."""
    draw = np.random.default_rng(seed)
    labels, subjects = np.arange(num) % A, np.arange(num) // A % 10
    x = draw.normal(size=(A, dims))[labels] + draw.normal(size=(10, dims))[subjects] + noise * draw.normal(size=(num, dims))
    return x.astype(np.float32), labels, subjects


def test_the_test_labels_and_clips_do_not_touch_the_choice() -> None:
    x, y, subjects = people(noise=3.0)
    train = subjects < 6
    known = {"train_groups": subjects[train], "num_classes": A}
    plain = linear_probe(x[train], y[train], x[~train], y[~train], **known)
    shuffled = linear_probe(x[train], y[train], x[~train], np.random.default_rng(1).permutation(y[~train]), **known)
    other = linear_probe(x[train], y[train], x[~train][:1] * 100, y[~train][:1], **known)
    assert plain.strength == shuffled.strength == other.strength
    assert plain.strength in STRENGTHS
    assert (plain.num_train, plain.num_test, plain.dims) == (int(train.sum()), int((~train).sum()), 40)


@pytest.mark.parametrize("dims", [10, 300])
def test_span_of_the_training_clips_loses_nothing(dims: int) -> None:
    x, y, subjects = people(dims=dims)
    train = subjects < 6
    probe = linear_probe(x[train], y[train], x[~train], y[~train], train_groups=subjects[train], num_classes=A)
    scaler = StandardScaler().fit(x[train])
    direct = LogisticRegression(C=probe.strength, max_iter=5000, tol=1e-6).fit(scaler.transform(x[train]), y[train])
    assert probe.top1 == pytest.approx((direct.predict(scaler.transform(x[~train])) == y[~train]).mean(), abs=1e-6)


def test_whole_people_are_held_out_in_the_choice() -> None:
    """Labels that hang on the person alone are predicted within a person and not across: strong regularisation must win then."""
    draw = np.random.default_rng(3)
    subjects = np.repeat(np.arange(8), 12)
    y = subjects % 2
    x = draw.normal(size=(8, 60))[subjects] + 0.1 * draw.normal(size=(96, 60))
    by_person = linear_probe(x, y, x, y, train_groups=subjects, num_classes=2)
    by_clip = linear_probe(x, y, x, y, train_groups=np.zeros(96), num_classes=2)  # a single group: each clip is its own
    assert by_person.top1 == by_clip.top1 == 1.0
    assert by_clip.strength > 1e-2
    assert by_clip.strength != by_person.strength


def test_the_choice_says_how_well_it_predicts_people_it_has_not_seen() -> None:
    """By hand: the regression of the chosen strength, fitted once for each fold of training people; test clips have no part in it."""
    x, y, subjects = people(noise=4.0)
    train = subjects < 6
    known = {"train_groups": subjects[train], "num_classes": A, "seed": 3}
    probe = linear_probe(x[train], y[train], x[~train], y[~train], **known)
    right = np.zeros(train.sum(), dtype=bool)
    for inner, held_out in GroupKFold(5, shuffle=True, random_state=3).split(x[train], y[train], subjects[train]):
        scaler = StandardScaler().fit(x[train][inner])
        model = LogisticRegression(C=probe.strength, max_iter=5000, tol=1e-6).fit(scaler.transform(x[train][inner]), y[train][inner])
        right[held_out] = model.predict(scaler.transform(x[train][held_out])) == y[train][held_out]
    assert probe.chosen_accuracy == pytest.approx(right.mean())
    assert 0.3 < probe.chosen_accuracy < 1
    fitted = fit_probe(x[train], y[train], groups=subjects[train], num_classes=A, seed=3)
    assert fitted.chosen_accuracy == probe.chosen_accuracy
    assert ((fitted.held_out.argmax(-1) == y[train]) == right).all()
    other = linear_probe(x[train], y[train], -x[~train], y[~train][::-1], **known)
    assert other.chosen_accuracy == probe.chosen_accuracy


@pytest.mark.parametrize(("classes", "dims"), [(2, 10), (2, 300), (4, 10), (4, 300)])
def test_a_fitted_probe_gives_the_probabilities_of_its_regression(classes: int, dims: int) -> None:
    x, y, subjects = people(dims=dims, noise=3.0)
    y = y % classes
    fitted = fit_probe(x, y, groups=subjects, num_classes=classes + 1)  # the last class has no clip
    scaler = StandardScaler().fit(x)
    direct = LogisticRegression(C=fitted.strength, max_iter=5000, tol=1e-8).fit(scaler.transform(x), y)
    found = fitted.probe.probabilities(x)
    assert np.abs(found[:, :classes] - direct.predict_proba(scaler.transform(x))).max() < 1e-3
    assert (found[:, classes] == 0).all()
    assert np.isfinite(fitted.probe.bias).all()


def result(chosen: float, dims: int, top1: float = 0.5) -> ProbeResult:
    return ProbeResult(top1, top1, top1, 10, 10, dims, 1.0, chosen)


def test_the_best_probe_is_chosen_without_the_test_clips() -> None:
    found = {
        "mean feature": result(0.7, 10, top1=0.9),
        "movement": result(0.6, 10),
        "mean and movement": result(0.8, 20, top1=0.1),
        "thirds": result(0.8, 30),
        "middle frame": result(0.95, 10),
        "clip length": result(1.0, 3),
        "features: linear, mean": result(1.0, 10),
    }
    assert best_probe(found) == "mean and movement"  # of two equal ones that of fewer numbers; no frame alone, no length alone
    found["mean feature"], found["movement"] = result(0.8, 10), result(0.8, 10)
    assert best_probe(found) == "mean feature"


def test_what_each_view_can_know() -> None:
    """Class 0/1: order of time; class 2: a middle frame of its own; class 3: twice as long."""
    draw = np.random.default_rng(0)
    num, steps = 200, 9
    labels, subjects = np.arange(num) % A, np.arange(num) // A % 10
    features = 0.1 * draw.normal(size=(num, steps, 2, 6))
    ramp = np.linspace(-1, 1, steps)[None, :, None]
    features[labels == 0, :, :, 0] += ramp
    features[labels == 1, :, :, 0] -= ramp
    features[labels == 2, steps // 2, :, 1] += 5
    lengths = np.where(labels == 3, 120, 60) + draw.integers(20, size=num)
    train, test = np.flatnonzero(subjects < 6), np.flatnonzero(subjects >= 6)
    found = probe_suite(features.astype(np.float16), labels, subjects, lengths, train, test, num_classes=A)
    names = ["mean feature", "movement", "mean and movement", "thirds", "thirds of both", "middle frame", "clip length"]
    assert list(found) == names
    assert found["thirds"].top1 == 1.0
    assert found["mean feature"].top1 < 0.85  # 0 and 1 have one mean
    assert found["middle frame"].top1 < 0.85  # 0, 1 and 3 are alike in the middle, but for noise
    assert 0.4 < found["clip length"].top1 < 0.75  # class 3 and a third of the rest
    assert [found[name].dims for name in names[:6]] == [12, 12, 24, 36, 72, 12]


def test_the_vectors_by_hand() -> None:
    """One clip of five steps and one cell: thirds are steps 0 and 1, 2 and 3, 4."""
    features = np.array([0, 1, 5, 3, 3], dtype=np.float16)[None, :, None, None]
    found = {name: x.tolist() for name, x in clip_vectors(features).items()}
    assert found == {
        "mean feature": [pytest.approx([2.4])],
        "movement": [pytest.approx([7 / 4])],
        "mean and movement": [pytest.approx([2.4, 7 / 4])],
        "thirds": [[0.5, 4, 3]],
        "thirds of both": [[0.5, 4, 3, 1, 3, 0]],
    }


@pytest.mark.parametrize("steps", [1, 2])
def test_short_clips_have_vectors(steps: int) -> None:
    features = np.arange(2 * steps * 3, dtype=np.float32).reshape(1, steps, 2, 3)
    found = clip_vectors(features)
    moved = 0 if steps == 1 else 6
    assert found["movement"].tolist() == [[moved] * 6]
    assert found["thirds of both"].tolist() == [3 * found["mean feature"][0].tolist() + 18 * [moved]]


def test_clips_do_not_depend_on_their_neighbours() -> None:
    features = np.random.default_rng(0).normal(size=(AT_ONCE + 3, 4, 1, 2)).astype(np.float16)
    found, alone = clip_vectors(features), clip_vectors(features[-1:])
    assert all(np.array_equal(x[-1:], alone[name]) for name, x in found.items())


def test_movement_is_seen_where_the_mean_is_the_same() -> None:
    """Class 1 swings about what class 0 rests at."""
    draw = np.random.default_rng(0)
    labels, subjects = np.arange(80) % 2, np.arange(80) // 2 % 8
    features = 0.1 * draw.normal(size=(80, 12, 1, 4))
    features[labels == 1, ::2, 0, 0] += 1
    features[labels == 1, 1::2, 0, 0] -= 1
    train, test = np.flatnonzero(subjects < 5), np.flatnonzero(subjects >= 5)
    found = probe_suite(features, labels, subjects, np.full(80, 12) + draw.integers(9, size=80), train, test, num_classes=2)
    assert found["movement"].top1 == found["mean and movement"].top1 == found["thirds of both"].top1 == 1.0
    assert found["mean feature"].top1 < 0.8


def test_a_class_missing_from_training_is_never_predicted() -> None:
    x, y, subjects = people()
    train = (subjects < 6) & (y != 2)
    probe = linear_probe(x[train], y[train], x[y == 2], y[y == 2], train_groups=subjects[train], num_classes=A)
    assert (probe.top1, probe.mean_class) == (0.0, 0.0)


def test_bad_input_is_named() -> None:
    x, y, subjects = people()
    with pytest.raises(DataError, match="no test clips"):
        linear_probe(x, y, x[:0], y[:0], train_groups=subjects, num_classes=A)
    with pytest.raises(DataError, match="one label"):
        linear_probe(x[y == 0], y[y == 0], x, y, train_groups=subjects[y == 0], num_classes=A)
    x[0, 0] = np.nan
    with pytest.raises(DataError, match="nan or infinity"):
        linear_probe(x, y, x, y, train_groups=subjects, num_classes=A)


def test_vectors_that_are_all_equal_leave_the_frequencies() -> None:
    x, y = np.ones((6, 9)), np.array([0, 0, 0, 0, 1, 2])
    found = linear_probe(x, y, np.ones((4, 9)), np.array([0, 0, 1, 2]), train_groups=np.array([1, 1, 1, 2, 2, 2]), num_classes=3)
    assert found.top1 == 0.5
