"""Caption metrics by hand, and against pycocoevalcap where it is installed (``pip install --no-deps pycocoevalcap==1.2``)."""

import random

import numpy as np
import pytest

from vtlvlm.metrics.captions import bleu, cider, rouge_l, words

VOCABULARY = ["a", "person", "waves", "the", "left", "hand", "three", "times", "seen", "from", "front", "somebody", "claps", "box"]


def drawn(seed: int) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(VOCABULARY, k=rng.randint(1, 12)))

    references = [[text() for _ in range(rng.randint(1, 3))] for _ in range(12)]
    captions = [rng.choice(known) if rng.random() < 0.4 else text() for known in references]
    return captions, references


@pytest.mark.parametrize("seed", range(5))
def test_they_are_those_of_pycocoevalcap(seed: int) -> None:
    bleu_scorer = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu
    cider_scorer, rouge_scorer = (pytest.importorskip(f"pycocoevalcap.{n}.{n}") for n in ("cider", "rouge"))
    captions, references = drawn(seed)
    ours, theirs = {i: [c] for i, c in enumerate(captions)}, dict(enumerate(references))
    assert bleu(captions, references) == pytest.approx(bleu_scorer(4).compute_score(theirs, ours, verbose=0)[0], abs=1e-6)
    assert np.mean(rouge_l(captions, references)) == pytest.approx(rouge_scorer.Rouge().compute_score(theirs, ours)[0])
    assert np.mean(cider(captions, references)) == pytest.approx(cider_scorer.Cider().compute_score(theirs, ours)[0])


def test_words() -> None:
    assert words("Somebody's LEFT hand; waves, 3x_times!") == ("somebody's", "left", "hand", "waves", "3x", "times")


def test_by_hand() -> None:
    references = [["the cat sat on the mat"], ["dogs run"]]
    assert bleu(["the cat sat on the mat", "dogs run"], references)[:2] == pytest.approx([1, 1])
    # 4 of 5 words, 2 of 3 pairs; 5 words where the references have 8
    found = bleu(["the cat sat", "dogs walk"], references)
    assert found[0] == pytest.approx(np.exp(1 - 8 / 5) * 4 / 5)
    assert found[1] == pytest.approx(np.exp(1 - 8 / 5) * np.sqrt(4 / 5 * 2 / 3))
    # the longest common subsequence of "the mat sat" is "the sat": 2 of 3 words, 2 of 6
    precision, recall = 2 / 3, 2 / 6
    assert rouge_l(["the mat sat"], references[:1]) == pytest.approx([2.44 * precision * recall / (recall + 1.44 * precision)])
    # every word in one clip of two: equal weights. Equal captions have cosine 1 in the orders that they have
    assert cider(["the cat sat on the mat", "dogs run"], references) == pytest.approx([10, 10 * 2 / 4])
    assert cider(["", "birds"], references) == rouge_l(["", "birds"], references) == [0, 0]
    assert bleu(["", "birds"], references)[0] == 0


def test_refused() -> None:
    for given in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="a reference or more"):
            bleu(*given)
