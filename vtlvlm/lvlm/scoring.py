"""Label scores in one forward pass (eq. 6). The categories' token sequences form a prefix tree, and the tree follows the context in one
sequence.

The tree is stored in tensors, so that scoring needs no loop over labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlavaForConditionalGeneration

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.context import embed
from vtlvlm.lvlm.lower_layers import Language, above
from vtlvlm.lvlm.masks import MASKED, causal_mask
from vtlvlm.lvlm.prefix import ContextStates, has_kernel
from vtlvlm.lvlm.vocabulary import token_log_probabilities

Form = Literal["packed", "two_pass", "batched"]


class LabelScores(NamedTuple):
    """Scores of every category after a batch of event sentences."""

    log_likelihood: Tensor
    """(B, A) float32 log P(label | context), natural logarithm, not normalised over labels (eq. 6)"""
    score: Tensor
    """(B, A) float32 ``log_likelihood`` minus the prior. Its softmax over A is P(A = a), its argmax the prediction (eq. 7)"""

    @property
    def in_list_mass(self) -> Tensor:
        """(B,) probability in [0, 1] that the model's answer is any of the categories."""
        return self.log_likelihood.logsumexp(-1).exp()


# -- the label tree ------------------------------------------------------------------------------------------------------------------------

MOST_NODES = 32_768
"""Largest number of tokens of a tree in one pass; memory grows with its square"""
ALIGNMENT = 8
"""Attention kernels of GPUs take a mask as it is if its number of keys is a multiple of this"""


class LabelTrie(nn.Module):
    """A prefix tree of label token sequences.

    Nodes are the tokens that the model has to *read* to predict the next token of some label. A label's last token (its end token) is only
    predicted and has no node. Parents precede their children. The tensors are non-persistent buffers: they follow the module to its device
    and stay out of checkpoints.

    Args:
        labels: One token sequence for each category. Each ends in an end token, so that no label is a proper prefix of another.
        max_positions: Cut the tree into :attr:`parts` of at most this many nodes; None for one part.
        chosen: Numbers of the labels in this tree; None for all.

    Raises:
        UsageError: A label has no tokens, two labels have the same tokens, or ``max_positions`` is below 1.
    """

    tokens: Tensor
    """(N,) int64, the token of each node"""
    depths: Tensor
    """(N',) int64, number of tokens above the node: its distance from the end of the context. N' counts the idle nodes of :meth:`align`"""
    ancestors: Tensor
    """(N', N') bool, ``ancestors[i, j]``: node i may attend to node j (itself and its ancestors); (0, 0) if the tree is cut into parts"""
    rows: Tensor
    """(F,) int64, the label of each predicted token; F is the number of label tokens"""
    slots: Tensor
    """(F,) int64 in [0, N], the position that predicts the token: 0 is the end of the context, 1 + i is node i"""
    targets: Tensor
    """(F,) int64, the predicted token"""
    lengths: Tensor
    """(A,) int64, number of tokens of each label, end token included; 0 for labels that are not in this tree"""

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
                f"{len(labels):,} categories make a tree of {len(nodes):,} tokens, one pass reads at most {MOST_NODES:,}; set "
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
        """Number of nodes N, the tokens that the model reads after the context. Idle nodes do not count."""
        return self.tokens.numel()

    def align(self, before: int, multiple: int) -> LabelTrie:
        """Append idle nodes, so that prompt, context and nodes together are a multiple of a number.

        Attention kernels of GPUs would otherwise pad the tree's mask in each layer. An idle node sees the context and itself, and no label
        reads it.

        Args:
            before: Positions of prompt and context.
            multiple: The number.

        Returns:
            This tree. Its ``parts`` are aligned each.
        """
        for part in self.parts:
            if not len(part):
                continue
            idle = -(before + len(part)) % multiple
            part.depths = pad(part.depths[: len(part)], (0, idle))
            own = torch.eye(idle, dtype=torch.bool, device=part.depths.device)
            part.ancestors = torch.block_diag(part.ancestors[: len(part), : len(part)], own).bool()
        return self

    @property
    def parts(self) -> list[LabelTrie]:
        """Trees that together hold every label once, with the label numbers of this tree; their sums add up to this tree's."""
        return list(self._parts) or [self]  # type: ignore[arg-type]

    def sums(self, picked: Tensor) -> Tensor:
        """Sum the log-probabilities of each label's tokens.

        Args:
            picked: (B, F) log-probabilities of the label tokens, in the order of ``rows``.

        Returns:
            (B, A) log P(label), natural logarithm; 0 for labels that are not in this tree.
        """
        return picked.new_zeros(picked.shape[0], self.num_labels).index_add(1, self.rows, picked)


def pieces_of(labels: Sequence[Sequence[int]], max_positions: int) -> list[list[int]]:
    """Divide labels among trees of at most ``max_positions`` nodes. Neighbours stay together, so that few shared beginnings are read twice.

    Args:
        labels: Token sequences, each with an end token.
        max_positions: Largest number of nodes of a tree; a label that needs more has its own tree.

    Returns:
        The label numbers of each tree, in the order of the labels' tokens.

    Raises:
        UsageError: ``max_positions`` is below 1.
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
    """Check that the context and every label after it fit into the model.

    Args:
        trie: The labels.
        before: Positions of prompt and context.
        positions: Positions of the model.
        classes: The labels' names, for the message.

    Raises:
        UsageError: The context alone fills the model, or a label is too long for the remaining positions.
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


# -- its scores ----------------------------------------------------------------------------------------------------------------------------


def score(model: LlavaForConditionalGeneration, context: Tensor, trie: LabelTrie, form: Form | None = None) -> Tensor:
    """Log-likelihood of every label after the context. Equals the result of one forward pass for each label.

    Three forms give the same numbers:

    - ``packed``: the tree's nodes follow the context in one sequence. Each node attends to the whole context and to its ancestors, at the
      position of its own label. Each path therefore sees exactly what it would see alone.
    - ``two_pass``: one pass over the context, then one pass over each of ``trie.parts`` with the context's keys and values. Needs our
      attention kernel.
    - ``batched``: one pass over the context, then the labels as a batch, each with a copy of the context's keys and values. It is slow, and
      takes much memory without parts (half a megabyte for each copied token in 7 billion weights). It needs no attention mask, so any
      kernel works. It does not work with gradient checkpointing.

    Only the context's last position and the nodes go through the vocabulary head. All clips have a context of one length, so there is no
    padding.

    Args:
        model: The LLaVA, with or without deep prompts attached.
        context: (B, C, L) embeddings of events and instruction (``context.embed_context``).
        trie: The labels.
        form: One of the three. None chooses ``packed`` for one part; for more parts ``two_pass`` with our kernel, else ``packed`` for each
            part; and ``batched`` if the attention kernel takes no mask.

    Returns:
        (B, A) float32 log P(label | context), natural logarithm; not normalised over the labels.

    Raises:
        UsageError: The attention kernel does not support the form.
    """
    kernel = model.model.language_model.config._attn_implementation
    masks = has_kernel(model) or kernel in MASKED
    if form is None:
        form = "batched" if not masks else "two_pass" if len(trie.parts) > 1 and has_kernel(model) else "packed"
    if form == "packed" and not masks:
        raise UsageError(f"attention kernel {kernel}: cannot take the mask of the label tree; use sdpa")
    if form == "two_pass" and not has_kernel(model):
        raise UsageError(f"attention kernel {kernel}: cannot score in two passes; use sdpa")
    if form == "batched" and model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UsageError(f"attention kernel {kernel}: scores labels over a cache, which gradient checkpointing forbids; use sdpa")
    if form == "packed":
        return torch.stack([_packed(model, context, part) for part in trie.parts]).sum(0)
    passes = _two_pass if form == "two_pass" else _batched
    return passes(model, context, trie)


def _packed(model: LlavaForConditionalGeneration, context: Tensor, trie: LabelTrie) -> Tensor:
    return _sums(model, run_packed(model, model.model.language_model, packed(model, context, trie), trie), trie)


def packed(model: LlavaForConditionalGeneration, context: Tensor, trie: LabelTrie) -> Tensor:
    """Embeddings of the context (B, C, L) → those of context and label tree in one sequence (B, C + N, L)."""
    return torch.cat([context, embed(model, trie.tokens).expand(len(context), -1, -1)], 1)


def run_packed(model: LlavaForConditionalGeneration, part: Language, states: Tensor, trie: LabelTrie) -> Tensor:
    """Run layers over context and label tree in one sequence.

    Args:
        model: The LLaVA.
        part: Its language model, or a part of it (``lower_layers``).
        states: (B, C + N, L) the input of the first of these layers.
        trie: The labels.

    Returns:
        (B, C + N, L) the output of the last of these layers.
    """
    length = states.shape[1] - len(trie)
    mask = _tree_mask(model, length, trie)
    if not has_kernel(model) and (causal := causal_mask(model, mask.shape[3], mask.device)) is not None:  # a mask over everything
        mask = torch.cat([causal[:, :, :length], mask], 2)
    positions = torch.cat([torch.arange(length, device=states.device), length + trie.depths])
    return _read(part, _with_idle(states, trie), positions, attention_mask=mask)[:, : states.shape[1]]


def score_states(model: LlavaForConditionalGeneration, states: Tensor, trie: LabelTrie, first: int) -> Tensor:
    """Label scores (B, A) as :func:`score` from the input (B, C + N, L) of layer number ``first`` (:func:`run_packed`)."""
    return _sums(model, run_packed(model, above(model.model.language_model, first), states, trie), trie)


def _two_pass(model: LlavaForConditionalGeneration, context: Tensor, trie: LabelTrie) -> Tensor:
    length, states = context.shape[1], ContextStates()
    causal = causal_mask(model, length, context.device)
    language = model.model.language_model
    end = _read(language, context, torch.arange(length, device=context.device), attention_mask=causal, keep=states)[:, -1:]

    def tree(part: LabelTrie, end: Tensor) -> Tensor:
        if not len(part):
            return _sums(model, end, part)
        batch = embed(model, part.tokens).expand(len(end), -1, -1)
        mask = _tree_mask(model, length, part)
        nodes = _read(language, _with_idle(batch, part), length + part.depths, attention_mask=mask, after=states)
        return _sums(model, torch.cat([end, nodes[:, : len(part)]], 1), part)

    return _each(tree, trie, end)


def _batched(model: LlavaForConditionalGeneration, context: Tensor, trie: LabelTrie) -> Tensor:
    length, device, language = context.shape[1], context.device, model.model.language_model
    cache = DynamicCache(config=model.config.text_config)
    end = _read(language, context, torch.arange(length, device=device), past_key_values=cache, use_cache=True)[:, -1:]

    def labels(part: LabelTrie, end: Tensor) -> Tensor:
        fed = part.slots > 0  # label tokens after the first
        words = part.tokens[part.slots[fed] - 1].split(part.lengths[part.rows.unique_consecutive()].sub(1).tolist())
        rows = pad_sequence(list(words), batch_first=True)  # (A', D), padded on the right, which causal attention hides
        number, width = rows.shape
        hidden = end
        if width:
            copies = [(layer.keys.repeat_interleave(number, 0), layer.values.repeat_interleave(number, 0)) for layer in cache.layers]
            fed_rows, positions = embed(model, rows).repeat(len(end), 1, 1), length + torch.arange(width, device=device)
            read = _read(language, fed_rows, positions, past_key_values=DynamicCache(copies), use_cache=True)
            place = pad_sequence([torch.ones_like(word, dtype=torch.bool) for word in words], batch_first=True)
            hidden = torch.cat([end, read.unflatten(0, (len(end), number))[:, place]], 1)
        picked = token_log_probabilities(hidden, model.lm_head.weight, torch.where(fed, fed.cumsum(0), 0), part.targets)
        return part.sums(picked)

    return _each(labels, trie, end)


def _each(score_part: Callable[[LabelTrie, Tensor], Tensor], trie: LabelTrie, end: Tensor) -> Tensor:
    """Sum of the parts' scores. Gradient checkpointing keeps the activations of one part at a time."""
    if len(trie.parts) > 1 and torch.is_grad_enabled():
        return torch.stack([checkpoint(score_part, part, end, use_reentrant=False) for part in trie.parts]).sum(0)
    return torch.stack([score_part(part, end) for part in trie.parts]).sum(0)


def _read(part: Language, sequence: Tensor, positions: Tensor, **kwargs: Any) -> Tensor:
    """The output (B, n, L) of layers for their input (B, n, L) at positions (n,)."""
    settings = {"use_cache": False, **kwargs}
    hidden: Tensor = part(inputs_embeds=sequence, position_ids=positions[None], **settings).last_hidden_state
    return hidden


def _with_idle(states: Tensor, trie: LabelTrie) -> Tensor:
    """States that end in the N nodes, with zeros for the idle ones."""
    idle = trie.depths.numel() - len(trie)
    return pad(states, (0, 0, 0, idle)) if idle else states


def _tree_mask(model: LlavaForConditionalGeneration, length: int, trie: LabelTrie) -> Tensor:
    """Additive mask (1, 1, N', C + N'): nodes see the context, themselves and their ancestors."""
    dtype, nodes = model.get_input_embeddings().weight.dtype, trie.depths.numel()
    mask = torch.zeros(nodes, length + nodes, dtype=dtype, device=trie.depths.device)
    mask[:, length:].masked_fill_(~trie.ancestors, torch.finfo(dtype).min)
    return mask[None, None]


def _sums(model: LlavaForConditionalGeneration, hidden: Tensor, trie: LabelTrie) -> Tensor:
    """Hidden states (B, ≥ 1 + N, L) that end in the context's last and the nodes → label scores (B, A)."""
    return trie.sums(token_log_probabilities(hidden[:, -1 - len(trie) :], model.lm_head.weight, trie.slots, trie.targets))
