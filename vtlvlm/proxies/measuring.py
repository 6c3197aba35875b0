"""The six automatic measures of a run's event sentences, each with the control that it must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.data.cache import FeatureCache
from vtlvlm.errors import DataError
from vtlvlm.metrics.codebook import CodebookHealth, action_information
from vtlvlm.probes.linear import linear_probe
from vtlvlm.proxies import likeness, purity, wording
from vtlvlm.proxies.clips import Clips, Reader
from vtlvlm.proxies.comparing import Comparison, compare
from vtlvlm.proxies.erasure import Areas, erasure
from vtlvlm.proxies.order import backwards, in_order, partners, shuffles
from vtlvlm.ratings.cards import inverse_frequency, leading_codes, stays_of
from vtlvlm.ratings.sentences import Sentences, event_cache
from vtlvlm.ratings.significance import COVERED, Interval

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule

PERMUTATIONS = 200


# -- 1. deletion and insertion ---------------------------------------------------------------------------------------------------------


def deletion_insertion(
    data: NTUDataModule, clips: Clips, read: Reader, chosen: NDArray[np.int64], steps: int, seed: int
) -> tuple[list[Comparison], dict[str, Any]]:
    """Remove and reveal steps in the order of their importance, on some test clips.

    Args:
        data: Set up, with an event cache.
        clips: All.
        read: The model.
        chosen: (n,) places among the test clips.
        steps: Of a clip, at most; the model reads 2 ** steps sentences for each clip and replacement.
        seed: Of the clips whose events replace removed ones.

    Returns:
        The comparisons, and the areas of each clip by its name.
    """
    table = event_cache(data).table
    assert table is not None
    train, test = clips.side(clips.events, False), clips.side(clips.events, True)
    cells = train.shape[2]
    mean = table[torch.from_numpy(train.reshape(-1))].mean(0)
    leading = leading_codes(test[chosen], inverse_frequency(train, clips.events.num_codes))
    spans = clips.events.spans[clips.train :][chosen]
    rng = np.random.default_rng([seed, 10])
    people = clips.test_people[chosen]
    areas: dict[str, list[Areas | None]] = {"the mean event": [], "events of another clip": []}
    found_steps = []
    for number, place in enumerate(chosen.tolist()):
        stays = stays_of(leading[number], spans[number], steps)[0]
        found_steps.append(len(stays))
        vectors = table[torch.from_numpy(test[place].reshape(-1))]
        others = np.flatnonzero(clips.labels[: clips.train] != clips.test_labels[place])
        other = table[torch.from_numpy(train[int(rng.choice(others))].reshape(-1))]
        for name, replacement in (("the mean event", mean.expand_as(vectors)), ("events of another clip", other)):
            areas[name].append(erasure(read, vectors, replacement, stays, cells))
    found = []
    nothing = Areas(*[float("nan")] * 4)
    for name, rows in areas.items():
        values = np.array([row or nothing for row in rows])
        note = f"steps replaced by {name}; 0 is the worst and 1 the best order of a clip; the first step is the best one by construction"
        for column, what in enumerate(("deletion", "insertion")):
            found.append(compare(f"{what}, {name}", "random order", values[:, column], values[:, 2 + column], people, note=note))
    by_clip = {
        str(clips.names[clips.train + place]): {name: list(rows[number] or nothing) for name, rows in areas.items()}
        for number, place in enumerate(chosen.tolist())
    }
    return found, {"areas": by_clip, "steps": float(np.mean(found_steps))}


# -- 2. code and class -----------------------------------------------------------------------------------------------------------------


def code_class(clips: Clips, seed: int) -> list[Comparison]:
    """How much codes say about the action: mutual information on training clips, and linear probes tested on test clips."""
    labels, people = clips.labels[: clips.train], clips.people[: clips.train]
    rng = np.random.default_rng([seed, 14])
    shares = {name: _information(book, clips, labels) for name, book in (("events", clips.events), ("baseline", clips.baseline))}
    permuted = np.array([_information(clips.events, clips, rng.permutation(labels)) for _ in range(PERMUTATIONS)])
    low, high = np.quantile(permuted, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    own = shares["events"]
    gap = Interval(own - float(permuted.mean()), own - float(high), own - float(low))
    p = float((1 + (permuted >= own).sum()) / (1 + PERMUTATIONS))
    what, note = "information of a code about the action", "information is a share of the actions' entropy, counted on training clips"
    drawn_of = ("clips", "permutations")
    mean = float(permuted.mean())
    found = [Comparison(what, "labels permuted", own, mean, gap, p, len(labels), PERMUTATIONS, bool(gap.low > 0), note=note, what=drawn_of)]
    names, place = np.unique(people.astype(str), return_inverse=True)
    left_out = [np.flatnonzero(place != number) for number in range(len(names))]
    without = [_information(clips.events, clips, labels, r) - _information(clips.baseline, clips, labels, r) for r in left_out]
    base = shares["baseline"]
    gap = jackknife(own - base, np.array(without))
    found.append(Comparison(what, "baseline", own, base, gap, float("nan"), len(labels), len(names), bool(gap.low > 0), note=note))
    right = {}
    for name, book, given in (
        ("events", clips.events, labels),
        ("baseline", clips.baseline, labels),
        ("permuted", clips.events, rng.permutation(labels)),
    ):
        train, test = clips.side(book, False), clips.side(book, True)
        rarity = inverse_frequency(train, book.num_codes)
        vectors = [likeness.tfidf(side, rarity).toarray() for side in (train, test)]
        used = vectors[0].any(0)
        probe = linear_probe(
            vectors[0][:, used],
            given,
            vectors[1][:, used],
            clips.test_labels,
            train_groups=people,
            num_classes=len(clips.classes),
            seed=seed,
        )
        right[name] = (np.array(probe.guesses) == clips.test_labels).astype(float)
    for control in ("permuted", "baseline"):
        title = "labels permuted" if control == "permuted" else control
        found.append(
            compare(
                "linear probe of the codes that occur",
                title,
                right["events"],
                right[control],
                clips.test_people,
                note="the probe learns from training clips; its accuracy is top-1 on test clips",
            )
        )
    return found


def jackknife(value: float, without: NDArray[np.float64]) -> Interval:
    """A value with its interval from the values without each person in turn, by Student's t.

    A bootstrap draws people twice, and equal tokens look like information.
    """
    from scipy.stats import t

    number = len(without)
    if number < 2:
        return Interval(value, float("nan"), float("nan"))
    error = float(np.sqrt((number - 1) / number * np.square(without - without.mean()).sum()))
    reach = float(t.ppf((1 + COVERED) / 2, number - 1)) * error
    return Interval(value, value - reach, value + reach)


def _information(book: Sentences, clips: Clips, labels: NDArray[np.int64], rows: NDArray[np.int64] | None = None) -> float:
    """Share of the actions' entropy that a code gives, on training clips."""
    codes = clips.side(book, False)
    rows = np.arange(len(labels)) if rows is None else rows
    keys = codes.reshape(len(codes), -1)[rows] * len(clips.classes) + labels[rows, None]
    pairs = np.bincount(keys.ravel(), minlength=book.num_codes * len(clips.classes)).reshape(book.num_codes, -1)
    return float(action_information(torch.from_numpy(pairs))[1])


# -- 3. order --------------------------------------------------------------------------------------------------------------------------


def order_matters(
    data: NTUDataModule, clips: Clips, read: Reader, chosen: NDArray[np.int64], seed: int
) -> tuple[list[Comparison], dict[str, Any]]:
    """Read test sentences, by their places, in their own order, shuffled and reversed."""
    table = event_cache(data).table
    assert table is not None
    test, labels, people = clips.side(clips.events, True)[chosen], clips.test_labels[chosen], clips.test_people[chosen]
    vectors = table[torch.from_numpy(test.reshape(len(test), -1))]
    number, windows, cells = test.shape
    own = read(vectors).double().numpy()
    shuffled = read(in_order(vectors, shuffles(number, windows, seed), cells)).double().numpy()
    reverse = read(in_order(vectors, backwards(number, windows), cells)).double().numpy()
    rows, found = np.arange(number), []
    for name, other in (("windows shuffled", shuffled), ("windows reversed", reverse)):
        right, less = ((one.argmax(1) == labels).astype(float) for one in (own, other))
        found.append(compare("accuracy in the own order", name, right, less, people))
        found.append(
            compare(
                "log-probability of the action", name, own[rows, labels], other[rows, labels], people, note="log-probabilities are in nats"
            )
        )
    pairs = partners(clips.classes)
    facts: dict[str, Any] = {"pairs": {}}
    paired = np.isin(labels, [*pairs])
    if paired.any():
        partner = np.array([pairs.get(int(label), -1) for label in labels])
        turned, kept = (np.where(paired, one[rows, partner] > one[rows, labels], np.nan).astype(float) for one in (reverse, own))
        note = "share of clips of such pairs for which the reversal is likelier than the action itself"
        found.append(compare("reversed windows are read as the reversed action", "own order", turned, kept, people, note=note))
        for first, second in sorted(pair for pair in pairs.items() if pair[0] < pair[1]):
            here = np.isin(labels, [first, second])
            name = f"{clips.classes[first]} / {clips.classes[second]}"
            of = {
                key: float((probs[here].argmax(1) == labels[here]).mean())
                for key, probs in (("own", own), ("shuffled", shuffled), ("reversed", reverse))
            }
            facts["pairs"][name] = {
                "clips": int(here.sum()),
                "accuracy": of,
                "read_as_the_reversal": float((reverse[here].argmax(1) == partner[here]).mean()),
            }
    return found, facts


# -- 4. coherence ----------------------------------------------------------------------------------------------------------------------


def coherence(clips: Clips, seed: int) -> tuple[list[Comparison], dict[str, Any]]:
    """How well the next code is predicted in test sentences by bigrams of training sentences, in their own order and shuffled."""
    people, found, gains = clips.test_people, [], {}
    for name, changes in (("next code", False), ("next code where it changes", True)):
        for book_name, book in (("events", clips.events), ("baseline", clips.baseline)):
            test = clips.side(book, True)
            bigrams = wording.Bigrams(clips.side(book, False), book.num_codes, changes)
            own, other = bigrams.surprise(test), bigrams.surprise(wording.shuffled_windows(test, seed))
            gains[book_name] = other - own
            if book_name == "events":
                note = f"nats a step, held-out bigrams; perplexity {np.exp(np.nanmean(own)):.0f} and {np.exp(np.nanmean(other)):.0f}"
                found.append(compare(f"surprise of the {name}", "windows shuffled", own, other, people, better="lower", note=note))
        found.append(
            compare(
                f"gain of the own order, {name}",
                "baseline",
                gains["events"],
                gains["baseline"],
                people,
                note="nats a step over shuffled windows",
            )
        )
    runs = [wording.run_length(clips.side(book, True)) for book in (clips.events, clips.baseline)]
    shuffled = wording.run_length(wording.shuffled_windows(clips.side(clips.events, True), seed))
    found.append(compare("windows that a code stays", "windows shuffled", runs[0], shuffled, people))
    found.append(compare("windows that a code stays", "baseline", runs[0], runs[1], people))
    facts = {
        "zipf_slope": {name: _zipf(book, len(clips.classes)) for name, book in (("events", clips.events), ("baseline", clips.baseline))}
    }
    return found, facts


def _zipf(book: Sentences, classes: int) -> float:
    health = CodebookHealth(book.num_codes, classes, book.codes.shape[1])
    health.update(torch.from_numpy(book.codes).flatten(1), torch.zeros(len(book.codes), dtype=torch.int64))
    return float(health.tally().figures()["zipf_slope"])


# -- 5. agreement across clips ---------------------------------------------------------------------------------------------------------


def agreement(clips: Clips) -> tuple[list[Comparison], dict[str, Any]]:
    """Nearest training clips of test clips: other people by the split. And, of one performance, the cameras against other actions."""
    labels, people, found = clips.test_labels, clips.test_people, []
    gallery = clips.labels[: clips.train]
    precision: dict[str, NDArray[np.float64]] = {}
    relevant = (labels[:, None] == gallery).sum(1)
    chances = relevant / len(gallery), likeness.chance_precision(relevant, len(gallery))
    for way in ("codes that occur", "order of codes"):
        scores = {}
        for name, book in (("events", clips.events), ("baseline", clips.baseline)):
            test, train = clips.side(book, True), clips.side(book, False)
            near = likeness.by_codes(test, train, book.num_codes) if way == "codes that occur" else likeness.by_order(test, train)
            scores[name] = likeness.retrieval(near, labels, gallery)
        precision[way] = scores["events"][1]
        for place, what in enumerate(("nearest clip has the action", "average precision of the action")):
            values = scores["events"][place], scores["baseline"][place]
            found.append(compare(f"{what}, by {way}", "chance", values[0], chances[place], people, note="chance is a random order"))
            found.append(compare(f"{what}, by {way}", "baseline", *values, people))
    gaps = {name: _cameras(clips, book) for name, book in (("events", clips.events), ("baseline", clips.baseline))}
    if np.isfinite(gaps["events"]).any():
        note = "cosine of codes with the same performance from another camera minus that with other actions, test clips"
        found.append(
            compare("one performance from two cameras", "clips of other actions", gaps["events"], np.zeros(len(labels)), people, note=note)
        )
        found.append(compare("one performance from two cameras", "baseline", gaps["events"], gaps["baseline"], people, note=note))
    by_clip = {str(name): float(value) for name, value in zip(clips.names[clips.train :], precision["codes that occur"], strict=True)}
    return found, {"average_precision": by_clip}


def _cameras(clips: Clips, book: Sentences) -> NDArray[np.float64]:
    """(n,) nan without another camera."""
    test, keys, labels = clips.side(book, True), clips.keys[clips.train :], clips.test_labels
    near = likeness.by_codes(test, test, book.num_codes)
    twins = (keys[:, None] == keys) & (keys != "") & ~np.eye(len(keys), dtype=bool)
    others = labels[:, None] != labels
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = (near * twins).sum(1) / twins.sum(1) - (near * others).sum(1) / others.sum(1)
    return found


# -- 6. purity of exemplars ------------------------------------------------------------------------------------------------------------


def exemplar_purity(data: NTUDataModule, clips: Clips, rows: NDArray[np.int64], other: FeatureCache, seed: int) -> list[Comparison]:
    """Find the odd one among exemplars of a code, by features of another extractor.

    Args:
        data: Set up.
        clips: All.
        rows: (n,) the clips' rows of the index.
        other: Features of an extractor that the run was not trained with, on the same grid.
        seed: Of the choice of exemplars.

    Raises:
        DataError: The features have another grid.
    """
    windows, cells = clips.events.codes.shape[1:]
    if other.cells != cells:
        raise DataError(f"{other.folder}: has {other.cells} cells, the event sentences have {cells}; extract with the same grid")
    places = data.plain_rows(other)[rows[: clips.train]]
    where = np.repeat(np.arange(clips.train), windows * cells)
    results = {}
    for name, book in (("events", clips.events), ("baseline", clips.baseline), ("random", clips.events)):
        codes = clips.side(book, False).reshape(-1)
        if name == "random":
            codes = np.random.default_rng([seed, 15]).permutation(codes)
        groups = purity.groups_of(codes, where, seed)
        results[name] = purity.odd_one_out(_features(other, places, book, groups, windows, cells)).astype(float), codes[groups[:, 0]]
    found = []
    for control in ("random", "baseline"):
        number = min(len(results["events"][0]), len(results[control][0]))
        values = results["events"][0][:number], results[control][0][:number]
        title = "codes at random" if control == "random" else control
        note = f"one of {purity.EACH + 1} pictures has another code; chance {purity.CHANCE:.2f}; features of another extractor"
        found.append(compare("odd exemplar found", title, *values, np.arange(number), note=note, what=("codes", "codes")))
    return found


def _features(
    cache: FeatureCache, rows: NDArray[np.int64], book: Sentences, groups: NDArray[np.int64], windows: int, cells: int
) -> NDArray[np.float64]:
    """(g, 4, D) the features of tokens: at the step in the middle of the token's window, in its cell."""
    tokens, back = np.unique(groups, return_inverse=True)
    clip, rest = np.divmod(tokens, windows * cells)
    window, cell = np.divmod(rest, cells)
    found = np.empty((len(tokens), cache.dim))
    for one in np.unique(clip):
        here = clip == one
        row = rows[one : one + 1]
        times = cache.times(row)[0].double().numpy()
        middles = book.spans[one, window[here]].mean(1)
        step = np.abs(times[None] - middles[:, None]).argmin(1)
        found[here] = cache.features(row)[0].double().numpy()[step, cell[here]]
    centred = found - found.mean(0)  # else all features point one way
    return centred[back.reshape(groups.shape)]
