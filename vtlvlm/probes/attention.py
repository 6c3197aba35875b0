"""A probe with one layer of attention on a sequence of tokens. Unlike a linear probe on the mean, it reads their order."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from vtlvlm.errors import DataError
from vtlvlm.probes.linear import FOLDS, ProbeResult

PENALTIES = (0.05, 5.0, 500.0)
"""Weights of the L2 penalty to try on folds of training people; a linear probe's C is half of their inverse"""
HEADS = (1, 4)
"""Numbers of heads to try"""
ATTENTION_PENALTY = 1.0
ITERATIONS = 25
WIDTH = 128
"""Principal components of the tokens that the probe reads"""


class AttentionReader(nn.Module):
    """Attends once with a few learned queries to the tokens and their positions. A linear map classifies the result, cell by cell.

    It starts as the linear probe on the mean: the first head attends uniformly. With four heads, the others start as means of the clip's
    beginning, middle and end. The penalty limits the distance from this start.

    Args:
        tokens: (N, S, W, D) of the training clips, which standardise the heads' outputs at the start.
        num_classes: A.
        heads: 1 or more.
    """

    start: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, tokens: Tensor, num_classes: int, heads: int) -> None:
        super().__init__()
        _, cells, windows, dim = tokens.shape
        place = (torch.arange(windows) + 0.5) / windows
        centres = torch.linspace(0, 1, heads - 1)[:, None]
        self.register_buffer("start", torch.cat([torch.zeros(1, windows), -((place - centres) / 0.25).square()]).T)
        self.query = nn.Parameter(torch.zeros(dim, heads))
        self.when = nn.Parameter(torch.zeros(windows, heads))
        self.head = nn.Linear(heads * cells * dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            seen = self.look(tokens)
        self.register_buffer("mean", seen.mean(dim=0))
        self.register_buffer("std", seen.std(dim=0).clamp(min=1e-6))

    def look(self, tokens: Tensor) -> Tensor:
        """Tokens (B, S, W, D) -> outputs of the heads for each cell (B, S·heads·D)."""
        weights = (tokens @ self.query + self.when + self.start).softmax(dim=2)  # (B, S, W, heads)
        return (weights.transpose(2, 3) @ tokens).flatten(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, S, W, D) -> logits (B, A)."""
        logits: Tensor = self.head((self.look(tokens) - self.mean) / self.std)
        return logits

    def distance(self) -> tuple[Tensor, Tensor]:
        """Squared distances from the start: of the linear map, and of the attention."""
        return self.head.weight.square().sum(), self.query.square().sum() + self.when.square().sum()


def attention_probe(
    train_x: Tensor,
    train_y: np.ndarray,
    test_x: Tensor,
    test_y: np.ndarray,
    *,
    train_groups: np.ndarray,
    windows: int,
    num_classes: int,
    seed: int = 0,
) -> ProbeResult:
    """Train :class:`AttentionReader` on the principal components of the tokens and test it.

    Penalty and number of heads have the lowest log-loss over folds of whole training groups. With few clips, log-loss is less noisy than
    accuracy. Only the folds are random.

    Args:
        train_x: (N, M, D) tokens of the training clips, window by window.
        train_y: (N,) labels in [0, A).
        test_x: (n, M, D) tokens of the test clips, used only after all choices.
        test_y: (n,) labels in [0, A).
        train_groups: (N,) the person of each training clip. If there is only one group, each clip is its own group.
        windows: W; M = W·S.
        num_classes: A.
        seed: of the folds.

    Returns:
        The result; ``strength`` is the penalty.

    Raises:
        DataError: There are no training or no test clips.
    """
    if not len(train_x) or not len(test_x):
        raise DataError("attention probe: no clips on one side; check the protocol and the split")
    train_z, test_z = (
        part.unflatten(1, (windows, -1)).transpose(1, 2).contiguous() for part in _components(train_x.float(), test_x.float())
    )
    labels = torch.from_numpy(train_y.astype(np.int64))
    groups = train_groups if len(np.unique(train_groups)) > 1 else np.arange(len(train_y))
    folds = list(GroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed).split(train_y, train_y, groups))
    tried = []
    for heads, penalty in product(HEADS, PENALTIES):
        found = np.zeros((len(train_y), num_classes))
        for inner, held_out in folds:
            found[held_out] = _fit(train_z[inner], labels[inner], num_classes, heads, penalty, train_z[held_out])
        loss = -np.log(np.maximum(found[np.arange(len(train_y)), train_y], 1e-9)).mean()
        tried.append((loss, heads, penalty, float((found.argmax(-1) == train_y).mean())))
    _, heads, penalty, accuracy = min(tried)
    probs, dims = _fit(train_z, labels, num_classes, heads, penalty, test_z), int(train_x.shape[1] * train_x.shape[2])
    return ProbeResult.of(probs, test_y, num_train=len(train_y), dims=dims, strength=penalty, chosen_accuracy=accuracy)


def _components(train_x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, M, D) and (n, M, D) -> their first ``WIDTH`` principal components, all divided by one common scale.

    Separate scales would remove the differences in size between codes and between components, which carry information.
    """
    rows = train_x.flatten(0, 1)
    mean = rows.mean(dim=0)
    sample = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:8192]] - mean
    scale = (sample.square().mean() * sample.shape[1]).sqrt().clamp(min=1e-6)
    width = min(WIDTH, *sample.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        basis = torch.pca_lowrank(sample, q=width, center=False, niter=2)[2]
    return (train_x - mean) @ basis / scale, (test_x - mean) @ basis / scale


def _fit(x: Tensor, y: Tensor, num_classes: int, heads: int, penalty: float, test: Tensor) -> np.ndarray:
    """Probabilities (n, A) of test tokens after training on x (N, S, W, D)."""
    reader = AttentionReader(x, num_classes, heads)
    optimizer = torch.optim.LBFGS(reader.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        linear, attention = reader.distance()
        total = F.cross_entropy(reader(x), y) + (penalty * linear + ATTENTION_PENALTY * attention) / len(x)
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        return reader.eval()(test).softmax(-1).double().numpy()
