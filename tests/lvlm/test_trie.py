import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.trie import LabelTrie

END = 9
LABELS = [[1, 2, END], [1, 3, 4, END], [1, END], [5, END]]


def test_layout_by_hand():
    trie = LabelTrie(LABELS)
    assert len(trie) == 5  # 1, 12, 13, 134, 5: end tokens are predicted, never read
    assert trie.tokens.tolist() == [1, 2, 3, 4, 5]
    assert trie.parents.tolist() == [-1, 0, 0, 2, -1]
    assert trie.depths.tolist() == [0, 1, 1, 2, 0]
    assert trie.ancestors.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert trie.rows.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]
    assert trie.slots.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 0, 5]
    assert trie.targets.tolist() == [1, 2, END, 1, 3, 4, END, 1, END, 5, END]


def test_sums_by_hand():
    trie = LabelTrie(LABELS)
    table = torch.arange(2 * 6 * 10, dtype=torch.float32).view(2, 6, 10)  # value = 60 clip + 10 slot + token
    expected = torch.tensor([1 + 12 + 29, 1 + 13 + 34 + 49, 1 + 19, 5 + 59.0])
    lengths = torch.tensor([3.0, 4, 2, 2])
    assert torch.equal(trie.sums(table), torch.stack([expected, expected + 60 * lengths]))


def test_labels_of_one_token_need_no_node():
    trie = LabelTrie([[3], [4]])
    assert len(trie) == 0
    assert trie.sums(torch.arange(5.0).view(1, 1, 5)).tolist() == [[3, 4]]


def test_a_trie_leaves_no_trace_in_checkpoints():
    assert LabelTrie(LABELS).state_dict() == {}


@pytest.mark.parametrize(("labels", "words"), [([[1], []], "category 1"), ([[1, 2], [3], [1, 2]], "categories 0 and 2")])
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[list[int]], words: str):
    with pytest.raises(UsageError, match=words):
        LabelTrie(labels)
