"""In-context learning: the user's own examples go into the prompt, as turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewardgap.core.errors import ConfigError, DataError
from rewardgap.core.records import Message, Prompt, prompt_messages
from rewardgap.decoding.plain import Greedy
from rewardgap.policies.base import AdaptedPolicy, GenerationSettings, own_text
from rewardgap.policies.cards import PolicyCard
from rewardgap.policies.run import Prepared
from rewardgap.retrieval.catalog import RETRIEVERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import TraceCache
    from rewardgap.core.records import PreferencePair
    from rewardgap.decoding.base import Decoder


@dataclass(frozen=True)
class Demonstrations:
    """A user's state in context: the pairs the user revealed, oldest first."""

    pairs: tuple[PreferencePair, ...]


class InContext(AdaptedPolicy):
    """The policy with demonstrations of the user before the query.

    A demonstration is the prompt of a support pair and what the user wrote for it (what the user chose, where the data
    have no reference). The most similar stands last, next to the query. Demonstrations that do not fit the context are
    dropped whole, least similar first, and counted; the query is never cut for them.

    Args:
        num_demonstrations: at most; None for the whole support set.
        retriever: name in the catalogue: it orders the support set.
    """

    name = "icl"
    servable = True

    def __init__(
        self,
        backbone: Backbone,
        decoder: Decoder,
        settings: GenerationSettings | None = None,
        *,
        num_demonstrations: int | None = None,
        retriever: str = "recent",
        **rest: Any,
    ) -> None:
        super().__init__(backbone, decoder, settings, **rest)
        if num_demonstrations is not None and num_demonstrations < 0:
            raise ConfigError(f"num_demonstrations must be at least 0, got {num_demonstrations}.")
        self.num_demonstrations = num_demonstrations
        self.retriever = RETRIEVERS[retriever].build()
        self.name = "icl" if retriever == "recent" else "icl_rag"

    def adapt(self, support: Sequence[PreferencePair]) -> Demonstrations:
        """Return the support set itself."""
        return Demonstrations(tuple(support))

    def show(self, prompt: Prompt, state: Any, limit: int) -> Prepared:
        """Return the prompt with as many demonstrations as asked for and as fit."""
        if not isinstance(state, Demonstrations):
            raise DataError("in-context learning needs the user's support pairs; pass adapt(support) as the state.")
        query = super().show(prompt, None, limit)
        chosen = self.select(prompt, state)
        settings = self.settings
        room = min(settings.context_tokens or self.backbone.context, self.backbone.context) - settings.max_new_tokens
        for shown in range(len(chosen), 0, -1):
            full = with_demonstrations(prompt, [state.pairs[index] for index in reversed(chosen[:shown])])
            ids = self.backbone.encoder.encode_prompt(full)
            if len(ids) <= room:
                return Prepared(full, ids, shown, len(chosen) - shown)
        return Prepared(query.prompt, query.ids, 0, len(chosen))

    def select(self, prompt: Prompt, state: Demonstrations) -> list[int]:
        """Return the indices of the demonstrations to show, most useful first."""
        template = self.settings.prompt_template
        texts = [own_text(pair.prompt, template) for pair in state.pairs]
        order = self.retriever.order(own_text(prompt, template), texts, seed=self.settings.seed) if texts else []
        return order[: self.num_demonstrations]


def with_demonstrations(prompt: Prompt, pairs: Sequence[PreferencePair]) -> Prompt:
    """Return the conversation that shows pairs, in their order, before the prompt; a system turn stays first."""
    messages = prompt_messages(prompt)
    opening = messages[:1] if messages and messages[0].role == "system" else ()
    turns: list[Message] = []
    for pair in pairs:
        turns += [message for message in prompt_messages(pair.prompt) if message.role != "system"]
        turns.append(Message("assistant", pair.demonstration))
    return (*opening, *turns, *messages[len(opening) :])


def in_context(
    policy: Backbone,
    support: Sequence[PreferencePair],
    *,
    retriever: str = "recent",
    num_demonstrations: int | None = None,
    decoder: Decoder | None = None,
    settings: GenerationSettings | None = None,
) -> InContext:
    """Return the policy with a user's examples in its prompt.

    Args:
        policy: the frozen policy.
        support: the user's pairs, oldest first.
        retriever: "recent" (the last ones), "bm25" (by similarity to the query) or "uniform".
        num_demonstrations: at most; None for all.
        decoder: greedy unless given.
        settings: lengths and rules.
    """
    return InContext(
        policy,
        decoder or Greedy(),
        settings,
        num_demonstrations=num_demonstrations,
        retriever=retriever,
        state=Demonstrations(tuple(support)),
    )


def _build(
    backbone: Backbone,
    settings: GenerationSettings,
    traces: TraceCache | None,
    num_demonstrations: int | None,
    retriever: str | None,
) -> InContext:
    return InContext(
        backbone,
        Greedy(),
        settings,
        traces=traces,
        num_demonstrations=num_demonstrations,
        retriever=retriever or "recent",
    )


ICL_CARD = PolicyCard(
    name="icl",
    summary="The user's last examples in the prompt, the same for every query.",
    equation="y ~ π(y | demonstrations, x)",
    paper="Brown et al. 2020, arXiv 2005.14165",
    build=_build,
    retriever="recent",
    deviations=("Demonstrations are chat turns: the user's prompt, then what the user wrote.",),
    personal=True,
    servable=True,
    options={
        "num_demonstrations": "shots, at most; the whole support set unless given",
        "retriever": "which of them, most useful first; the most recent unless given",
    },
)
RAG_CARD = PolicyCard(
    name="icl_rag",
    summary="The user's examples most similar to the query in the prompt, the most similar last.",
    equation="y ~ π(y | retrieve(support, x), x)",
    paper="Salemi et al. 2024, LaMP, arXiv 2304.11406",
    build=_build,
    retriever="bm25",
    deviations=("Demonstrations are chat turns; retrieval compares prompts and never sees a completion.",),
    personal=True,
    servable=True,
    options={
        "num_demonstrations": "shots, at most; the whole support set unless given",
        "retriever": "which of them, most useful first; bm25 unless given",
    },
)
