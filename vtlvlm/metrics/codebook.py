"""Metrics of a codebook's health. Their states are sums, so results are exact under any number of processes.

They measure the frequencies of codes (compared with words, whose frequencies follow a power law), how long a code lasts (runs), and the
actions that it occurs with.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from vtlvlm.errors import UsageError
from vtlvlm.metrics.actions import UNKNOWN

ENOUGH_TOKENS = 10
"""Mean number of tokens per code that a collapse requires. With fewer tokens, most codes stay unused even in a healthy codebook."""
LOW_PERPLEXITY = 0.1
"""Share of K below which the perplexity counts as a collapse. Words under Zipf's law have 14 % at K = 2,048."""
FEW_USED = 0.25
"""Share of used codes below which the codebook counts as collapsed."""
SUPPORT = 3
"""Clips of a class in which a code must occur for the pair to count, since the tokens of one clip are alike."""

CollapseKind = Literal["perplexity", "unused"]


class SeenEvents(NamedTuple):
    """The codes and windows of a batch, for drawing."""

    ids: Tensor
    """(B, M) int64"""
    spans: Tensor
    """(B, W, 2) seconds: start and end of each window"""
    edges: Tensor
    """(B, W+1) feature steps: window w lies between edges w and w+1"""
    cumulative: Tensor
    """(B, T'+1) in [0, 1]: cumulative share of salience before each step"""


class CodeClassPair(NamedTuple):
    """A code that occurs in clips of one class more often than by chance."""

    code: int
    label: int
    pmi: float
    """nats: log P(code, class) / (P(code) P(class))"""
    tokens: int
    """tokens of the code in clips of the class"""
    clips: int
    """clips of the class in which the code occurs"""


class CodeTally(NamedTuple):
    """Counts, summed over all processes, and the metrics computed from them."""

    counts: Tensor
    """(K,) int64, tokens of each code"""
    pairs: Tensor
    """(K, A) int64, tokens of each code in clips of each class"""
    clips: Tensor
    """(K, A) int64, clips of each class in which each code occurs"""
    runs: Tensor
    """(W,) int64; entry w counts the runs in which a cell keeps its code for exactly w + 1 windows"""

    @property
    def tokens(self) -> int:
        """The number of counted tokens."""
        return int(self.counts.sum())

    def figures(self) -> dict[str, Tensor]:
        """The scalars to log.

        Returns:
            ``perplexity`` in [1, K] (exp of the codes' entropy; 0 without tokens), ``perplexity_share`` of K, ``used_share`` of K,
            ``dead_codes`` (a count), ``zipf_slope`` (nan with fewer than two used codes), ``mean_run_length`` in windows (0 without
            tokens).
            With known classes also ``action_information`` in nats and ``action_information_share``, its share of the actions' entropy in
            [0, 1]
            (both nan without a labelled token).
        """
        num_codes, used = len(self.counts), (self.counts > 0).sum()
        perplexity = entropy(self.counts).exp() * (used > 0)
        lengths = torch.arange(1, len(self.runs) + 1, device=self.runs.device)
        found = {
            "perplexity": perplexity,
            "perplexity_share": perplexity / num_codes,
            "used_share": used / num_codes,
            "dead_codes": num_codes - used,
            "zipf_slope": zipf_fit(self.counts)[0],
            "mean_run_length": (self.runs * lengths).sum() / self.runs.sum().clamp_min(1),
        }
        if self.pairs.shape[1]:
            information, share = action_information(self.pairs)
            found |= {"action_information": information, "action_information_share": share}
        return {name: value.float() for name, value in found.items()}

    def pmi(self, support: int = SUPPORT) -> Tensor:
        """Pointwise mutual information of code and class (Church and Hanks 1990), over labelled tokens.

        Args:
            support: clips of the class in which the code must occur.

        Returns:
            (K, A) float64 nats, nan below the support.
        """
        pairs = self.pairs.double()
        of_code = pairs / pairs.sum(dim=1, keepdim=True)  # exactly 1 for a code of one class, so that ties stay ties
        of_class = pairs.sum(dim=0) / pairs.sum()
        return (of_code / of_class).log().masked_fill(self.clips < max(support, 1), torch.nan)

    def top_pmi_pairs(self, num: int = 10, each: int = 2, support: int = SUPPORT) -> list[CodeClassPair]:
        """The pairs of code and class with the highest :meth:`pmi`. Ties are sorted by number of tokens.

        Args:
            num: pairs, at most.
            each: pairs of one class, at most. Otherwise the rarest class would fill the list.
            support: as for :meth:`pmi`.
        """
        pmi = self.pmi(support)
        order = (pmi + 1e-12 * self.pairs).masked_fill(pmi.isnan(), -torch.inf)
        codes = order.topk(min(each, len(order)), dim=0).indices  # (each, A)
        labels = torch.arange(order.shape[1], device=codes.device).expand_as(codes)
        values = order[codes, labels].flatten()
        best = values.topk(min(num, len(values))).indices
        best = best[pmi[codes, labels].flatten()[best] > 1e-9]  # neither pairs below the support (nan) nor pairs at chance level
        columns = (codes, labels, pmi[codes, labels], self.pairs[codes, labels], self.clips[codes, labels])
        return [CodeClassPair(*row) for row in zip(*(column.flatten()[best].tolist() for column in columns), strict=True)]

    def collapse(self) -> tuple[CollapseKind, ...]:
        """The kinds of collapse of the codebook; empty with fewer than ``ENOUGH_TOKENS`` tokens per code."""
        if self.tokens < ENOUGH_TOKENS * len(self.counts):
            return ()
        found = self.figures()
        low, few = float(found["perplexity_share"]) < LOW_PERPLEXITY, float(found["used_share"]) < FEW_USED
        kinds: tuple[CollapseKind, ...] = ("perplexity", "unused")
        return tuple(kind for kind, holds in zip(kinds, (low, few), strict=True) if holds)


class CodebookHealth(Metric):
    """Counts codes, the classes that they occur with, and their run lengths. All states are sums of integers.

    Args:
        num_codes: K >= 1.
        num_classes: A; 0 if classes are unknown, and then their metrics are left out.
        windows: W >= 1, windows of an event sentence.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor
    pairs: Tensor
    clips: Tensor
    runs: Tensor

    def __init__(self, num_codes: int, num_classes: int, windows: int) -> None:
        super().__init__()
        if num_codes < 1 or num_classes < 0 or windows < 1:
            raise UsageError(f"CodebookHealth: {num_codes=}, {num_classes=}, {windows=}: need at least 1, 0 and 1")
        self.num_codes, self.num_classes, self.windows = num_codes, num_classes, windows
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros(num_codes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("clips", torch.zeros(num_codes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("runs", torch.zeros(windows, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ids: Tensor, labels: Tensor) -> None:
        """Add event sentences.

        Args:
            ids: (B, M) int64 code numbers in [0, K), window by window, the cells of a window side by side. -1 (padding, identity quantiser)
                is not counted and ends a run.
            labels: (B,) int64. The codes of clips labelled -1 are counted without a class.
        """
        flat = ids.reshape(-1)
        self.counts.index_add_(0, flat.clamp_min(0), (flat != UNKNOWN).long())
        lengths, ends = run_lengths(ids.unflatten(1, (self.windows, -1)))
        self.runs.index_add_(0, lengths.flatten() - 1, ends.flatten().long())
        if self.num_classes:
            known = (labels != UNKNOWN)[:, None]
            rows = ids.clamp_min(0) * self.num_classes + labels.clamp_min(0)[:, None]
            self.pairs.view(-1).index_add_(0, rows.flatten(), (known & (ids != UNKNOWN)).flatten().long())
            occurs = ids.new_zeros(len(ids), self.num_codes + 1).scatter_(1, ids.where(ids != UNKNOWN, self.num_codes), 1)[:, :-1]
            self.clips.index_add_(1, labels.clamp_min(0), (occurs * known).T)

    def compute(self) -> dict[str, Tensor]:
        """See :meth:`CodeTally.figures`."""
        return CodeTally(self.counts, self.pairs, self.clips, self.runs).figures()

    def tally(self) -> CodeTally:
        """A copy of the counts, summed over all processes. All processes must call it."""
        with self.sync_context():
            return CodeTally(self.counts.clone(), self.pairs.clone(), self.clips.clone(), self.runs.clone())

    def go_on(self, kept: Any) -> None:
        """Go on from the counts of a checkpoint; from none where it has none, or those of another number of classes or windows.

        Args:
            kept: The fields of :meth:`tally`.
        """
        held = kept if isinstance(kept, dict) else {}
        states = {"counts": self.counts, "pairs": self.pairs, "clips": self.clips, "runs": self.runs}
        if all(isinstance(one := held.get(name), Tensor) and (one.shape, one.dtype) == (s.shape, s.dtype) for name, s in states.items()):
            for name, state in states.items():
                state.copy_(held[name])


def run_lengths(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The run length of each cell's code.

    Args:
        codes: (B, W, S) int64, -1 for none.

    Returns:
        (B, W, S) int64, the number of windows up to this one with the same code, and (B, W, S) bool, whether a run of a code
        ends here.
    """
    changes = codes[:, 1:] != codes[:, :-1]
    border = torch.ones_like(codes[:, :1], dtype=torch.bool)
    place = torch.arange(codes.shape[1], device=codes.device)[:, None].expand_as(codes)
    start = torch.where(torch.cat([border, changes], dim=1), place, 0).cummax(dim=1).values
    return place - start + 1, torch.cat([changes, border], dim=1) & (codes != UNKNOWN)


def entropy(counts: Tensor, corrected: bool = False) -> Tensor:
    """Entropy of counts (...) in nats, float64; 0 without counts.

    Args:
        counts: any shape, one number per outcome.
        corrected: add (outcomes seen - 1) / 2N, the bias of the plain estimate from N samples to first order (Miller 1955, "Note on the
            bias of information estimates"; with the outcomes seen instead of all possible ones, as is usual).
    """
    total = counts.sum().clamp_min(1)
    plain = torch.special.entr(counts.double() / total).sum()
    return plain + ((counts > 0).sum() - 1).clamp_min(0) / (2 * total) if corrected else plain


def action_information(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Mutual information of a code and its clip's action: I(code; action) = H(code) + H(action) - H(code, action), each bias-corrected.

    The correction assumes independent tokens. The tokens of one clip are dependent, so the estimate is too high for few clips.

    Args:
        pairs: (K, A) counts.

    Returns:
        Nats, at least 0, and their share of the actions' entropy, in [0, 1] (0 with a single action). Both are nan without counts.
    """
    of_actions = entropy(pairs.sum(dim=0), corrected=True)
    information = (entropy(pairs.sum(dim=1), corrected=True) + of_actions - entropy(pairs, corrected=True)).clamp_min(0)
    share = torch.where(of_actions > 0, information / of_actions.clamp_min(1e-12), 0.0).clamp_max(1)
    empty = pairs.sum() == 0
    return information.masked_fill(empty, torch.nan), share.masked_fill(empty, torch.nan)


def zipf_fit(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares fit of log frequency over log rank of the codes in use. Zipf's law for words has a slope of -1.

    Args:
        counts: (K,) int64.

    Returns:
        Slope and intercept (natural logarithms, frequencies as shares, ranks from 1), float64; nan with fewer than two codes in use.
    """
    used = counts[counts > 0].sort(descending=True).values.double()
    if len(used) < 2:
        return used.new_tensor(torch.nan), used.new_tensor(torch.nan)
    rank = torch.arange(1, len(used) + 1, device=used.device, dtype=used.dtype).log()
    level = (used / used.sum()).log()
    slope = ((rank - rank.mean()) * (level - level.mean())).sum() / (rank - rank.mean()).square().sum()
    return slope, level.mean() - slope * rank.mean()
