"""Words and their weights against loops and against scikit-learn."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from vtlvlm.retrieval import words
from vtlvlm.retrieval.words import count_words, index_words

CODES = 7


def slowly(sentence: np.ndarray) -> list[str]:
    """The words of a sentence (W, S): its codes, and the changes within each cell."""
    found = [str(code) for code in sentence.ravel()]
    for cell in sentence.T:
        found += [f"{before}>{after}" for before, after in pairwise(cell) if before != after]
    return found


def spelled(word: int) -> str:
    return str(word) if word < CODES else "{}>{}".format(*divmod(word - CODES, CODES))


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(CODES, size=(9, 5, 3)).astype(np.uint16)


def test_words_are_codes_and_changes_within_a_cell(ids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "BLOCK", 4)  # three blocks
    found = count_words(ids, CODES)
    for row, sentence in enumerate(ids):
        here = found.rows == row
        assert {spelled(w): c for w, c in zip(found.words[here].tolist(), found.counts[here].tolist(), strict=True)} == Counter(
            slowly(sentence)
        )


def test_no_change_leads_from_a_cell_to_the_next() -> None:
    """1 2 in each of two windows: the flat sentence 1 2 1 2 has changes, the cells have none."""
    assert count_words(np.array([[[1, 2], [1, 2]]]), CODES).words.tolist() == [1, 2]


def test_weights_are_those_of_scikit_learn(ids: np.ndarray) -> None:
    vectorizer = TfidfVectorizer(analyzer=slowly, sublinear_tf=True)
    theirs = vectorizer.fit_transform(list(ids))
    ours = index_words(ids, CODES)
    assert len(ours.words) == theirs.shape[1]
    names = vectorizer.get_feature_names_out().tolist()
    columns = theirs.toarray()
    for word, start, end in zip(ours.words.tolist(), ours.starts[:-1], ours.starts[1:], strict=True):
        mine = np.zeros(len(ids))
        mine[ours.clips[start:end]] = ours.weights[start:end]
        np.testing.assert_allclose(mine, columns[:, names.index(spelled(word))], atol=1e-6)
    np.testing.assert_allclose(ours.scores(ids[4], CODES), (theirs @ theirs[4].T).toarray()[:, 0], atol=1e-6)


def test_a_word_that_no_sentence_holds_only_lengthens_the_query(ids: np.ndarray) -> None:
    known = ids[:, :, :1] % 5  # codes 5 and 6 never occur
    index = index_words(known, CODES)
    asked = known[2].copy()
    asked[0, 0] = 6
    counts = Counter(slowly(asked))
    held = {word: sum(word in slowly(sentence) for sentence in known) for word in counts}
    weights = {w: (1 + np.log(c)) * (np.log((1 + len(known)) / (1 + held[w])) + 1) for w, c in counts.items()}
    length = np.sqrt(sum(w**2 for w in weights.values()))
    theirs = TfidfVectorizer(analyzer=slowly, sublinear_tf=True)
    matrix = theirs.fit_transform(list(known)).toarray()
    places = theirs.vocabulary_
    expected = sum(matrix[:, places[w]] * value / length for w, value in weights.items() if w in places)
    np.testing.assert_allclose(index.scores(asked, CODES), expected, atol=1e-6)
