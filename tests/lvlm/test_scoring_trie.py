import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.scoring import LabelTrie, pieces_of, require_room

END = 9
LABELS = [[1, 2, END], [1, 3, 4, END], [1, END], [5, END]]


def test_layout_by_hand():
    trie = LabelTrie(LABELS)
    assert len(trie) == 5  # 1, 12, 13, 134, 5: end tokens are predicted, never read
    assert trie.tokens.tolist() == [1, 2, 3, 4, 5]
    assert trie.depths.tolist() == [0, 1, 1, 2, 0]
    assert trie.ancestors.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert trie.rows.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]
    assert trie.slots.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 0, 5]
    assert trie.targets.tolist() == [1, 2, END, 1, 3, 4, END, 1, END, 5, END]


def test_sums_by_hand():
    trie = LabelTrie(LABELS)
    assert trie.lengths.tolist() == [3, 4, 2, 2]
    picked = torch.stack([torch.arange(11.0), torch.arange(11.0) + 60])
    expected = torch.tensor([0 + 1 + 2, 3 + 4 + 5 + 6, 7 + 8, 9 + 10.0])
    assert torch.equal(trie.sums(picked), torch.stack([expected, expected + 60 * trie.lengths]))


def test_labels_of_one_token_need_no_node():
    trie = LabelTrie([[3], [4]])
    assert len(trie) == 0
    assert trie.sums(torch.tensor([[3.0, 4.0]])).tolist() == [[3, 4]]


def test_pieces_by_hand():
    """In the order of their tokens (1 2 9, 1 3 4 9, 1 9, 5 9), neighbours share what they begin with: 1, 2 | 3, 4 | | 5."""
    assert pieces_of(LABELS, 5) == [[0, 1, 2, 3]]
    assert pieces_of(LABELS, 4) == [[0, 1, 2], [3]]
    assert pieces_of(LABELS, 3) == [[0], [1, 2], [3]]  # 1, 2, 3, 4 would be four: 1 is read twice
    assert pieces_of(LABELS, 1) == [[0], [1], [2], [3]]  # a label longer than that is alone
    with pytest.raises(UsageError, match="max_positions 0"):
        pieces_of(LABELS, 0)


def test_parts_have_every_label_once():
    trie = LabelTrie(LABELS, max_positions=3)
    assert [part.tokens.tolist() for part in trie.parts] == [[1, 2], [1, 3, 4], [5]]
    assert [part.rows.tolist() for part in trie.parts] == [[0, 0, 0], [1, 1, 1, 1, 2, 2], [3, 3]]
    assert sum(part.lengths for part in trie.parts).tolist() == trie.lengths.tolist()
    assert sum(part.sums(torch.ones(1, len(part.rows))) for part in trie.parts).tolist() == [[3, 4, 2, 2]]
    assert (trie.ancestors.numel(), trie.parts[1].ancestors.shape) == (0, (3, 3))  # thousands of categories would need gigabytes at once
    assert LabelTrie(LABELS, max_positions=5).parts[0].tokens.tolist() == trie.tokens.tolist()
    assert trie.state_dict() == {}


def test_room_by_hand():
    """The longest label reads three tokens behind the context."""
    trie, names = LabelTrie(LABELS), ["a", "b" * 50, "c", "d"]
    require_room(trie, 7, 10, names)
    with pytest.raises(UsageError, match=r"category 1 'b{37}\.\.\.': its 3 tokens do not fit behind the 8 of .* positions for 10"):
        require_room(trie, 8, 10, names)
    with pytest.raises(UsageError, match="take 10 tokens, the LLaVA has positions for 10"):
        require_room(trie, 10, 10, names)


def test_a_trie_leaves_no_trace_in_checkpoints():
    assert LabelTrie(LABELS).state_dict() == {}


@pytest.mark.parametrize(("labels", "words"), [([[1], []], "category 1"), ([[1, 2], [3], [1, 2]], "categories 0 and 2")])
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[list[int]], words: str):
    with pytest.raises(UsageError, match=words):
        LabelTrie(labels)
