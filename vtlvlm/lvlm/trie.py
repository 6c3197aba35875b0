"""The categories' token sequences as one tree, laid out in tensors so that no score needs a loop over labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtlvlm.errors import UsageError


class LabelTrie(nn.Module):
    """A prefix tree of label token sequences.

    Nodes are the tokens that have to be *read* for some label's next token to be predicted; a label's last token (its end token)
    is only ever predicted and has no node. Parents precede their children. The tensors are non-persistent buffers: they follow
    the module to its device and stay out of checkpoints.

    Args:
        labels: One token sequence a category, each closed by an end token, so that no label is a proper prefix of another.

    Raises:
        UsageError: A label without tokens, or two labels with the same ones.
    """

    tokens: Tensor
    """(N,) int64, the token each node feeds"""
    parents: Tensor
    """(N,) int64, the node before, -1 for a label's first token"""
    depths: Tensor
    """(N,) int64, tokens above the node: its distance from the end of the context"""
    ancestors: Tensor
    """(N, N) bool, ``ancestors[i, j]``: node i may attend to node j (itself and those above it)"""
    rows: Tensor
    """(F,) int64, the label each predicted token belongs to; F is the number of label tokens"""
    slots: Tensor
    """(F,) int64 in [0, N], where the token is predicted: 0 is the end of the context, 1 + i is node i"""
    targets: Tensor
    """(F,) int64, the predicted token"""

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        super().__init__()
        nodes: dict[tuple[int, ...], int] = {}
        parents: list[int] = []
        rows, slots, targets = [], [], []
        seen: dict[tuple[int, ...], int] = {}
        for row, label in enumerate(map(tuple, labels)):
            if not label:
                raise UsageError(f"category {row}: has no tokens to score; give every category a name")
            if label in seen:
                raise UsageError(f"categories {seen[label]} and {row} have the same tokens; give every category a name of its own")
            seen[label] = row
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
        ancestors = torch.eye(len(nodes), dtype=torch.bool)
        for node, parent in enumerate(parents):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        self.num_labels = len(seen)
        self._keep("tokens", [path[-1] for path in nodes])
        self._keep("parents", parents)
        self._keep("depths", [len(path) - 1 for path in nodes])
        self._keep("rows", rows)
        self._keep("slots", slots)
        self._keep("targets", targets)
        self.register_buffer("ancestors", ancestors, persistent=False)

    def _keep(self, name: str, values: list[int]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def __len__(self) -> int:
        """Number of nodes N: tokens fed besides the context."""
        return self.tokens.numel()

    def sums(self, log_probabilities: Tensor) -> Tensor:
        """Sum the log-probabilities along every label's path.

        Args:
            log_probabilities: (B, 1 + N, V), for the last context position and then every node, in order.

        Returns:
            (B, A) log P(label), natural logarithm.
        """
        picked = log_probabilities[:, self.slots, self.targets]  # (B, F)
        return picked.new_zeros(picked.shape[0], self.num_labels).index_add(1, self.rows, picked)
