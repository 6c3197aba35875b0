"""The categories' token sequences as one tree, laid out in tensors so that no score needs a loop over labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtlvlm.errors import UsageError

MOST_NODES = 32_768
"""Tokens of a tree that is read in one pass; memory grows with their square"""


class LabelTrie(nn.Module):
    """A prefix tree of label token sequences.

    Nodes are the tokens that have to be *read* for some label's next token to be predicted; a label's last token (its end token)
    is only ever predicted and has no node. Parents precede their children. The tensors are non-persistent buffers: they follow
    the module to its device and stay out of checkpoints.

    Args:
        labels: One token sequence a category, each closed by an end token, so that no label is a proper prefix of another.
        max_positions: Cut the tree into :attr:`parts` of at most so many nodes; None for one.
        chosen: Only lay out these of the labels; None for all.

    Raises:
        UsageError: A label without tokens, two labels with the same ones, or ``max_positions`` below 1.
    """

    tokens: Tensor
    """(N,) int64, the token each node feeds"""
    depths: Tensor
    """(N,) int64, tokens above the node: its distance from the end of the context"""
    ancestors: Tensor
    """(N, N) bool, ``ancestors[i, j]``: node i may attend to node j (itself and those above it); (0, 0) where the parts have it"""
    rows: Tensor
    """(F,) int64, the label each predicted token belongs to; F is the number of label tokens"""
    slots: Tensor
    """(F,) int64 in [0, N], where the token is predicted: 0 is the end of the context, 1 + i is node i"""
    targets: Tensor
    """(F,) int64, the predicted token"""
    lengths: Tensor
    """(A,) int64, tokens of each label, its end token included; 0 if it is not laid out"""

    def __init__(self, labels: Sequence[Sequence[int]], max_positions: int | None = None, chosen: Sequence[int] | None = None) -> None:
        super().__init__()
        nodes: dict[tuple[int, ...], int] = {}
        parents: list[int] = []
        rows, slots, targets, lengths = [], [], [], [0] * len(labels)
        seen: dict[tuple[int, ...], int] = {}
        self.num_labels = len(labels)
        for row in range(len(labels)) if chosen is None else chosen:
            label = tuple(labels[row])
            if not label:
                raise UsageError(f"category {row}: has no tokens to score; give every category a name")
            if label in seen:
                raise UsageError(f"categories {seen[label]} and {row} have the same tokens; give every category a name of its own")
            seen[label], lengths[row] = row, len(label)
            above = -1
            for depth, token in enumerate(label):
                rows.append(row)
                slots.append(1 + above)
                targets.append(token)
                if depth + 1 < len(label):
                    path = label[: depth + 1]
                    if path not in nodes:
                        nodes[path] = len(nodes)
                        parents.append(above)
                    above = nodes[path]
        pieces = [] if max_positions is None or len(nodes) <= max_positions else pieces_of(labels, max_positions)
        self._parts = nn.ModuleList(LabelTrie(labels, chosen=piece) for piece in pieces)
        if not pieces and len(nodes) > MOST_NODES:
            raise UsageError(
                f"{len(labels):,} categories make a tree of {len(nodes):,} tokens, at most {MOST_NODES:,} are read in one pass; set "
                "reasoner.llava.max_positions to cut it, or give fewer categories"
            )
        ancestors = torch.eye(0 if pieces else len(nodes), dtype=torch.bool)
        for node, parent in enumerate(parents[: len(ancestors)]):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        self._keep("tokens", [path[-1] for path in nodes])
        self._keep("depths", [len(path) - 1 for path in nodes])
        self._keep("rows", rows)
        self._keep("slots", slots)
        self._keep("targets", targets)
        self._keep("lengths", lengths)
        self.register_buffer("ancestors", ancestors, persistent=False)

    def _keep(self, name: str, values: list[int]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def __len__(self) -> int:
        """Number of nodes N: tokens fed besides the context."""
        return self.tokens.numel()

    @property
    def parts(self) -> list[LabelTrie]:
        """Trees that have every label once between them, numbered as here; their sums add up to this one's."""
        return list(self._parts) or [self]  # type: ignore[arg-type]

    def sums(self, picked: Tensor) -> Tensor:
        """Sum along every label's path.

        Args:
            picked: (B, F) log-probabilities of the label tokens, in the order of ``rows``.

        Returns:
            (B, A) log P(label), natural logarithm; 0 for a label that is not laid out.
        """
        return picked.new_zeros(picked.shape[0], self.num_labels).index_add(1, self.rows, picked)


def pieces_of(labels: Sequence[Sequence[int]], max_positions: int) -> list[list[int]]:
    """Divide labels among trees of at most so many nodes, neighbours together so that few beginnings are read twice.

    Args:
        labels: Token sequences, each closed by an end token.
        max_positions: Nodes a tree may have; a label that needs more has one of its own.

    Returns:
        The numbers of the labels of each tree, in the order of their tokens.

    Raises:
        UsageError: ``max_positions`` below 1.
    """
    if max_positions < 1:
        raise UsageError(f"max_positions {max_positions}: use 1 or more, or leave it out for one pass")
    pieces: list[list[int]] = []
    size = 0
    for row in sorted(range(len(labels)), key=lambda row: tuple(labels[row])):
        path = labels[row][:-1]
        last = labels[pieces[-1][-1]][:-1] if pieces else ()
        shared = next((i for i, (a, b) in enumerate(zip(path, last, strict=False)) if a != b), min(len(path), len(last)))
        if pieces and size + len(path) - shared <= max_positions:
            pieces[-1].append(row)
            size += len(path) - shared
        else:
            pieces.append([row])
            size = len(path)
    return pieces


def require_room(trie: LabelTrie, before: int, positions: int, classes: Sequence[str]) -> None:
    """Check that the context and every label behind it fit into a model.

    Args:
        trie: The labels.
        before: Positions that prompt and context take.
        positions: How many the model has.
        classes: The labels' names, for the message.

    Raises:
        UsageError: A context that fills the model by itself, or a label too long for what it leaves.
    """
    longest = int(trie.lengths.argmax())
    read = int(trie.lengths[longest]) - 1  # the end token is never read
    if before + read <= positions:
        return
    if before >= positions:
        raise UsageError(
            f"prompts, events and instruction take {before} tokens, the LLaVA has positions for {positions}; use fewer events, or an "
            "instruction that does not list the categories"
        )
    name = classes[longest]
    shown = name if len(name) <= 40 else f"{name[:37]}..."
    raise UsageError(
        f"category {longest} {shown!r}: its {read} tokens do not fit behind the {before} of prompts, events and instruction, the LLaVA has "
        f"positions for {positions}; give it a shorter name"
    )
