"""Sentences that are no categories are scored as categories are, after the trained question."""

from pathlib import Path

import pytest
import torch
from reasoners import reasoner_of

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.sentences import SentenceScorer


@pytest.mark.parametrize("listed", [False, True])
def test_a_category_has_the_score_that_it_has_as_one(llava_path: Path, classes: tuple[str, ...], listed: bool) -> None:
    reasoner = reasoner_of(llava_path, DeepPrompts(4), Instruction(list_categories=listed)).eval()
    reasoner.build(classes, 6, 16)
    vectors = torch.randn(3, 6, 16)
    with torch.no_grad():
        expected = reasoner(vectors).log_likelihood
    asked = ["reading", "drink", "sitting up and reading"]
    found = SentenceScorer(reasoner, asked)(vectors)
    assert found.shape == (3, 3)
    for column, name in enumerate(asked[:2]):
        torch.testing.assert_close(found[:, column], expected[:, classes.index(name)], atol=1e-4, rtol=1e-4)
    alone = SentenceScorer(reasoner, asked[2:])(vectors)
    torch.testing.assert_close(found[:, 2:], alone, atol=1e-4, rtol=1e-4)
    assert reasoner.classes == classes  # the reasoner stays as it was


@pytest.mark.parametrize(
    ("sentences", "said"),
    [([""], "has no name"), (["wave", "Wave"], "is named 2 times"), (["a <image>"], "holds <image>"), (["wave " * 3000], "at most 10,000"),
     (["wave " * 1000], "do not fit")],
)  # fmt: skip
def test_refused(llava_path: Path, sentences: list[str], said: str) -> None:
    reasoner = reasoner_of(llava_path, DeepPrompts(4), Instruction(list_categories=False)).eval()
    with pytest.raises(UsageError, match="no language model yet"):
        SentenceScorer(reasoner, ["wave"])
    reasoner.build(("wave", "jump"), 6, 16)
    with pytest.raises(UsageError, match=said):
        SentenceScorer(reasoner, sentences)
