"""What one layer of attention reads from a sequence of tokens: a probe that, unlike a linear one on their mean, knows their order."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from vtlvlm.errors import DataError
from vtlvlm.report.probes import FOLDS, ProbeResult

DECAYS = (0.3, 1.0, 3.0)
"""Weight decays that are tried, on folds of training people"""
STEPS, BATCH, RATE, WIDTH = 200, 64, 3e-3, 64


class AttentionReader(nn.Module):
    """A learned query looks once at the tokens and their places, for each class (attention pooling).

    Args:
        dim: D.
        windows: W, places in time; M = W·S.
        cells: S, places in the picture.
        num_classes: A.
        width: of keys and values.
    """

    def __init__(self, dim: int, windows: int, cells: int, num_classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.inward = nn.Linear(dim, width)
        self.when = nn.Parameter(torch.randn(windows, 1, width) * 0.1)
        self.where = nn.Parameter(torch.randn(1, cells, width) * 0.1)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(4, width) * width**-0.5)
        self.value = nn.Linear(width, width)
        self.outward = nn.Linear(4 * width + width, num_classes)
        self.drop = nn.Dropout(0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, M, D), window by window -> logits (B, A)."""
        seen = self.inward(tokens) + (self.when + self.where).flatten(0, 1)
        seen = self.drop(self.norm(F.gelu(seen)))
        weights = (seen @ self.query.T / seen.shape[-1] ** 0.5).softmax(dim=1)  # (B, M, 4)
        looked = (weights.transpose(1, 2) @ self.value(seen)).flatten(1)
        logits: Tensor = self.outward(self.drop(torch.cat([looked, seen.mean(dim=1)], dim=1)))
        return logits


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
    """Train :class:`AttentionReader` on standardised tokens and test it.

    The weight decay is the one with the best accuracy over folds of whole training groups (equal accuracies: the lower log-loss).

    Args:
        train_x: (N, M, D) tokens of the training clips, window by window.
        train_y: (N,) labels in [0, A).
        test_x: (n, M, D) tokens of the test clips; used after every choice is made.
        test_y: (n,) labels in [0, A).
        train_groups: (N,) the person of each training clip. Where there is one group only, each clip counts as its own.
        windows: W; M = W·S.
        num_classes: A.
        seed: draws the folds, the start and the batches.

    Returns:
        ``strength`` is the weight decay.

    Raises:
        DataError: a side is empty.
    """
    if not len(train_x) or not len(test_x):
        raise DataError("attention probe: no clips on one side; check the protocol and the split")
    flat = train_x.float().flatten(0, 1)
    mean, std = flat.mean(dim=0), flat.std().clamp(min=1e-6)  # one scale: codes and principal components differ in size for a reason
    train_z, test_z, labels = (train_x.float() - mean) / std, (test_x.float() - mean) / std, torch.from_numpy(train_y.astype(np.int64))
    groups = train_groups if len(np.unique(train_groups)) > 1 else np.arange(len(train_y))
    folds = list(GroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed).split(train_y, train_y, groups))
    scores = []
    for decay in DECAYS:
        found = np.zeros((len(train_y), num_classes))
        for inner, held_out in folds:
            found[held_out] = _fit(train_z[inner], labels[inner], windows, num_classes, decay, seed, train_z[held_out])
        loss = -np.log(np.maximum(found[np.arange(len(train_y)), train_y], 1e-9)).mean()
        scores.append((-(found.argmax(-1) == train_y).mean(), loss, decay))
    decay = min(scores)[2]
    probs = _fit(train_z, labels, windows, num_classes, decay, seed, test_z)
    return ProbeResult.of(probs, test_y, num_train=len(train_y), dims=int(train_x.shape[1] * train_x.shape[2]), strength=decay)


def _fit(x: Tensor, y: Tensor, windows: int, num_classes: int, decay: float, seed: int, test: Tensor) -> np.ndarray:
    """Probabilities (n, A) of test tokens after training on x (N, M, D)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = AttentionReader(x.shape[2], windows, x.shape[1] // windows, num_classes)
        optimizer = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.randperm(len(x))[:BATCH]
            loss = F.cross_entropy(reader(x[rows]), y[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return reader.eval()(test).softmax(-1).double().numpy()
