"""From event vectors to the log-likelihood of every action (Sec. III-B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.alignment import AlignmentSums, align
from vtlvlm.lvlm.generative import answer_table, language_loss
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Dtype, load_config, load_llava, load_tokenizer, projector_width
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.scoring import score
from vtlvlm.lvlm.trie import LabelTrie


class EventReasoner(nn.Module):
    """A frozen LLaVA that reads [soft prompts; event sentence; instruction] and scores the categories (eq. 5 to 7).

    Args:
        llava: Folder or hub name of a LLaVA-family checkpoint.
        prompts: The deep prompts; ``DeepPrompts(tokens=0)`` is the untuned model.
        instruction: What the model is asked.
        revision: The hub's branch, tag or commit.
        dtype: Of the frozen weights. What is trained stays float32.
        train_projector: Train LLaVA's projector along, as a freshly composed one needs.
        align_projector: Before training starts, fit the projector to the training side in closed form (``alignment.py``), so that an event
            looks like the words of its category. For projectors that were never aligned; needs ``train_projector``.
        pmi: Score a label by how much likelier the events make it: from its log-likelihood, its mean over training clips as the model
            stands when training starts is subtracted (domain-conditional PMI, arXiv 2104.08315), or, in a model never trained, that
            after empty events (all zero) without prompts. Long and rare names then start level with short ones, and training need not
            unlearn the difference.
        gradient_checkpointing: Recompute each layer in the backward pass: about half the memory for a third more time.

    Attributes:
        base: The LLaVA, None before :meth:`build`.
        classes: Category names in the order of the scores.
        prior: (A,) nats, what is subtracted from the log-likelihoods; zero without ``pmi``.
        temperature: Scalar that divides the scores before they become probabilities; 1 unless somebody has fitted it.
    """

    base: LlavaForConditionalGeneration | None
    context: Tensor
    """(C,) int64, the token ids before the answer"""
    prior: Tensor
    temperature: Tensor
    answers: Tensor
    """(A, T) int64, each category's tokens with its end token, -100 behind them"""

    def __init__(
        self,
        llava: str,
        prompts: DeepPrompts,
        instruction: Instruction,
        revision: str | None = None,
        dtype: Dtype = "float32",
        train_projector: bool = False,
        align_projector: bool = False,
        pmi: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.llava, self.revision, self.dtype = llava, revision, dtype
        self.prompts, self.instruction = prompts, instruction
        if align_projector and not train_projector:
            raise UsageError("align_projector changes the projector: set train_projector too, so that checkpoints hold it")
        self.train_projector, self.align_projector, self.pmi = train_projector, align_projector, pmi
        self.gradient_checkpointing = gradient_checkpointing
        self.base = None
        self.trie: LabelTrie | None = None
        self.classes: tuple[str, ...] = ()
        self.num_events = 0
        self.register_buffer("context", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("prior", torch.zeros(0))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("answers", torch.empty(0, 0, dtype=torch.int64), persistent=False)

    def build(self, classes: Sequence[str], num_events: int, event_dim: int, fresh: bool = True) -> None:
        """Load the LLaVA and lay out context and labels. Calling it again with other categories or M only lays these out anew.

        Everything that can be wrong is checked before the weights are read.

        Args:
            classes: Category names, in label order.
            num_events: M, events a sentence.
            event_dim: E, width of an event vector.
            fresh: Start the prompts from words or from another prefix, where they say so; False where trained ones are loaded next.

        Raises:
            UsageError: No such LLaVA, a projector of another width, layers that do not exist, a prefix of another model to start from, or
                categories that cannot be told apart.
        """
        config = load_config(self.llava, self.revision)
        if projector_width(config) != event_dim:
            raise UsageError(
                f"{self.llava}: its projector reads vectors {projector_width(config)} wide, the events have {event_dim}; "
                f"set event_dim to {projector_width(config)} in stage 1, or use another LLaVA"
            )
        self.prompts.build(config.text_config)
        if fresh and self.base is None and self.prompts.init_from is not None:
            self.prompts.read(self.prompts.init_from, config.text_config.num_hidden_layers)
        tokenizer = load_tokenizer(self.llava, self.revision)
        device = self.context.device
        labels = self.instruction.labels(tokenizer, classes)
        trie = LabelTrie(labels)
        self.answers = answer_table(labels).to(device)
        self.context = self.instruction.context(tokenizer, num_events, classes).to(device)
        self.trie, self.classes, self.num_events = trie.to(device), tuple(classes), num_events
        if self.base is None:
            base, _ = load_llava(self.llava, self.revision, self.dtype)
            if fresh and self.prompts.init_text is not None:
                self.prompts.fill(base, tokenizer(self.prompts.init_text, add_special_tokens=False).input_ids)
            self.prompts.attach(base)
            if self.train_projector:
                base.model.multi_modal_projector.float().requires_grad_(True)
            if self.gradient_checkpointing:
                base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.base = base
            self.train(self.training)
        self.prior = self._prior(event_dim)

    @torch.no_grad()
    def _prior(self, event_dim: int) -> Tensor:
        """(A,) log-likelihoods after empty events, without prompts; zero without ``pmi``."""
        base = self._built()
        if not self.pmi:
            return torch.zeros(len(self.classes), device=self.context.device)
        assert self.trie is not None
        self.prompts.active = False
        try:
            empty = torch.zeros(1, self.num_events, event_dim, device=self.context.device)
            return score(base, self.project(empty), self.context, self.trie)[0]
        finally:
            self.prompts.active = True

    @torch.no_grad()
    def align(self, sums: AlignmentSums) -> None:
        """Fit the projector to training events: see ``alignment.py``.

        Raises:
            UsageError: Not built, events that are all equal, or a projector that cannot carry a linear map.
        """
        table = self._built().get_input_embeddings().weight
        tokenizer = load_tokenizer(self.llava, self.revision)
        ids = tokenizer([f" {name}" for name in self.classes], add_special_tokens=False).input_ids
        words = torch.stack([table[torch.tensor(row, device=table.device)].float().mean(0) for row in ids])
        align(self.projector, sums, words, float(table.float().square().mean().sqrt()))

    @torch.no_grad()
    def level(self, vectors: Tensor) -> None:
        """Set ``prior`` to the mean log-likelihood of each label after these event sentences (n, M, E), as the model stands."""
        mode = self.training
        self.eval()
        self.prior = torch.cat([self(part) + self.prior for part in vectors.split(8)]).mean(0)
        self.train(mode)

    def train(self, mode: bool = True) -> EventReasoner:
        """Training mode for what is trained; the frozen model leaves evaluation mode only where checkpointing asks for it."""
        super().train(mode)
        if self.base is not None:
            self.base.train(mode and self.gradient_checkpointing)
        return self

    @property
    def projector(self) -> LlavaMultiModalProjector:
        """LLaVA's own projector.

        Raises:
            UsageError: Not built.
        """
        return self._built().model.multi_modal_projector

    def project(self, vectors: Tensor) -> Tensor:
        """Through the projector: (B, M, E) → (B, M, L)."""
        projector = self.projector
        return projector(vectors.to(projector.linear_1.weight.dtype))

    def forward(self, vectors: Tensor) -> Tensor:
        """Score the categories.

        Args:
            vectors: (B, M, E) event vectors.

        Returns:
            (B, A) float32 log P(label) less the prior, natural logarithm, not normalised: softmax over A is P(A = a) (eq. 6) and argmax
            the prediction (eq. 7).

        Raises:
            UsageError: Not built, or sentences of another length than M.
        """
        base = self._built(vectors)
        assert self.trie is not None
        return score(base, self.project(vectors), self.context, self.trie) - self.prior

    def generative_loss(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The language model's own loss on the answers: see ``generative.py``.

        Args:
            vectors: (B, M, E) event vectors.
            labels: (B,) int64 in [0, A).

        Returns:
            A scalar, nats a token.

        Raises:
            UsageError: Not built, or sentences of another length than M.
        """
        return language_loss(self._built(vectors), self.project(vectors), self.context, self.answers.index_select(0, labels))

    def probabilities(self, scores: Tensor) -> Tensor:
        """(B, A) scores → (B, A) calibrated probabilities."""
        return (scores / self.temperature).softmax(-1)

    def in_list_mass(self, scores: Tensor) -> Tensor:
        """(B, A) scores → (B,) probability in [0, 1] that the model answers with any of the categories."""
        return (scores + self.prior).logsumexp(-1).exp()

    def trainable_state(self) -> dict[str, Tensor]:
        """What training made, by its name in this module: prompts, temperature, the projector if it is trained, the prior with ``pmi``."""
        state = {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}
        state |= {f"prompts.{name}": buffer for name, buffer in self.prompts.named_buffers()}  # where an MLP's output is added to them
        return state | {"temperature": self.temperature} | ({"prior": self.prior} if self.pmi else {})

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`trainable_state` gave.

        Raises:
            UsageError: Not built, or tensors of another model, layer set or number of prompt tokens.
        """
        self._built()
        own, state = self.trainable_state(), {"temperature": torch.ones(()), **state}  # older bundles know no temperature
        for name in sorted(own.keys() | state.keys()):
            here = tuple(own[name].shape) if name in own else "nothing"
            there = tuple(state[name].shape) if name in state else "nothing"
            if here != there:
                raise UsageError(
                    f"trained weights do not fit: {name} is {there} in the file and {here} here; use the settings they were trained with"
                )
        self.load_state_dict(dict(state), strict=False)

    def _built(self, vectors: Tensor | None = None) -> LlavaForConditionalGeneration:
        """The LLaVA, with room for these event sentences."""
        if self.base is None:
            raise UsageError("the reasoner has no language model yet; call build(classes, num_events, event_dim) first")
        if vectors is not None and vectors.shape[1] != self.num_events:
            raise UsageError(
                f"event sentences have {vectors.shape[1]} events, the context has room for {self.num_events}; build for that M"
            )
        return self.base
