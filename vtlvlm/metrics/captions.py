"""How well captions agree with reference captions: BLEU, ROUGE-L and CIDEr-D, with a tokenizer of our own.

The formulas are those of the COCO caption evaluation (``pycocoevalcap``), whose tokenizer, METEOR and SPICE need Java. Words here are runs
of letters, digits and apostrophes in lower case, so the figures are not those of the Penn Treebank tokenizer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = 4
"""Longest n-grams"""
ROUGE_BETA, CIDER_SIGMA = 1.2, 6.0
Words = tuple[str, ...]


def words(text: str) -> Words:
    """The words of a caption."""
    return tuple(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()))


def ngrams(sentence: Words, order: int) -> Counter[Words]:
    """How often each n-gram of an order occurs."""
    return Counter(zip(*(sentence[start:] for start in range(order)), strict=False))


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 of all captions together (Papineni et al. 2002), each in [0, 1].

    Args:
        captions: n texts.
        references: For each, one text or more. The closest in length counts for the brevity penalty.

    Raises:
        ValueError: There are no captions, or one has no reference.
    """
    _require(captions, references)
    right, guesses = np.zeros(ORDERS), np.zeros(ORDERS)
    length = reference_length = 0
    for caption, known in zip(captions, references, strict=True):
        ours, theirs = words(caption), [words(text) for text in known]
        length += len(ours)
        reference_length += min((abs(len(one) - len(ours)), len(one)) for one in theirs)[1]
        for order in range(1, ORDERS + 1):
            counts = ngrams(ours, order)
            most: Counter[Words] = Counter()
            for one in theirs:
                most |= ngrams(one, order)
            guesses[order - 1] += max(0, len(ours) - order + 1)
            right[order - 1] += sum((counts & most).values())
    penalty = min(1.0, math.exp(1 - reference_length / length)) if length else 0.0
    precisions = np.divide(right, guesses, out=np.zeros(ORDERS), where=guesses > 0)
    with np.errstate(divide="ignore"):
        return [float(penalty * np.exp(np.log(precisions[:order]).mean())) for order in range(1, ORDERS + 1)]


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """F-measure of the longest common subsequence (Lin 2004, beta 1.2) of each caption, in [0, 1]. Precision and recall are the best over
    its references.

    Raises:
        ValueError: As for :func:`bleu`.
    """
    _require(captions, references)
    return [rouge_of(words(caption), [words(text) for text in known]) for caption, known in zip(captions, references, strict=True)]


def rouge_of(ours: Words, theirs: Sequence[Words]) -> float:
    """ROUGE-L of one caption."""
    common = [_subsequence(ours, one) for one in theirs]
    precision = max((count / len(ours) for count in common), default=0.0) if ours else 0.0
    recall = max((count / len(one) for count, one in zip(common, theirs, strict=True) if one), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _subsequence(one: Words, other: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, there in enumerate(other, 1):
            before, row[place] = row[place], before + 1 if word == there else max(row[place], row[place - 1])
    return row[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D (Vedantam et al. 2015) of each caption: mean over its references of the cosines of tf-idf n-grams, times 10.

    Document frequencies are those of the given references; a clip is a document. With one clip every n-gram has weight 0, and so has CIDEr.

    Raises:
        ValueError: As for :func:`bleu`.
    """
    _require(captions, references)
    held: Counter[Words] = Counter()
    counted = [[_all_ngrams(words(text)) for text in known] for known in references]
    for known in counted:
        held.update(set().union(*known))
    documents = math.log(len(references))

    def weights(counts: Counter[Words]) -> tuple[list[dict[Words, float]], list[float]]:
        found: list[dict[Words, float]] = [{} for _ in range(ORDERS)]
        for gram, count in counts.items():
            found[len(gram) - 1][gram] = count * (documents - math.log(max(1, held[gram])))
        return found, [math.sqrt(sum(value**2 for value in part.values())) for part in found]

    scores = []
    for caption, known in zip(captions, counted, strict=True):
        counts = _all_ngrams(words(caption))
        ours, lengths = weights(counts)
        total = 0.0
        for other in known:
            theirs, other_lengths = weights(other)
            gap = _bigrams(counts) - _bigrams(other)
            for mine, there, length, other_length in zip(ours, theirs, lengths, other_lengths, strict=True):
                product = sum(min(value, there.get(gram, 0.0)) * there.get(gram, 0.0) for gram, value in mine.items())
                if length and other_length:
                    total += product / (length * other_length) * math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))
        scores.append(10 * total / (ORDERS * len(known)))
    return scores


def _all_ngrams(sentence: Words) -> Counter[Words]:
    found: Counter[Words] = Counter()
    for order in range(1, ORDERS + 1):
        found.update(ngrams(sentence, order))
    return found


def _bigrams(counts: Counter[Words]) -> int:
    """Number of bigrams, which CIDEr-D takes for the length of a caption."""
    return sum(count for gram, count in counts.items() if len(gram) == 2)


def _require(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError("give one caption or more, and a reference or more for each")
