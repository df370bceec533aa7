"""A user in a few sentences: the persona goes into the system turn, the user's examples into chat turns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rewardgap.core.errors import DataError
from rewardgap.core.records import Message, Prompt, pair_to_json, prompt_messages
from rewardgap.core.store import canonical_json
from rewardgap.decoding.plain import Greedy
from rewardgap.policies.asking import LABELS, PairAsker, most_that_fit
from rewardgap.policies.base import AdaptedPolicy, GenerationSettings
from rewardgap.policies.cards import PolicyCard
from rewardgap.policies.chat_models import LocalChat
from rewardgap.policies.in_context import Demonstrations, InContext, with_demonstrations
from rewardgap.policies.judge_states import (
    Persona,
    pair_from_json,
    persona_from_json,
    persona_to_json,
)
from rewardgap.policies.persona_writing import DEMONSTRATIONS, DEVIATIONS, PersonaSettings, PersonaWriter
from rewardgap.policies.run import Prepared
from rewardgap.rewards.base import meaning
from rewardgap.rewards.fitting import check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.backbones.traces import TraceCache
    from rewardgap.core.records import PreferencePair
    from rewardgap.decoding.base import Decoder
    from rewardgap.policies.chat_models import ChatModel

PersonaTurn: TypeAlias = Literal["system", "user"]


def with_persona(prompt: Prompt, text: str, turn: PersonaTurn = "system") -> Prompt:
    """Return a prompt with a persona: in its system turn, behind what stands there, or before the first user turn."""
    said = f"The user you write for: {text}"
    messages = prompt_messages(prompt)
    if turn == "system":
        if messages and messages[0].role == "system":
            return (Message("system", f"{messages[0].content}\n\n{said}"), *messages[1:])
        return (Message("system", said), *messages)
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise DataError("a persona needs a user turn to stand in, and the prompt has none; give the prompt one.")
    opened = Message("user", f"{said}\n\n{messages[first].content}")
    return (*messages[:first], opened, *messages[first + 1 :])


@dataclass(frozen=True)
class PersonaState(Demonstrations):
    """A user's state: the pairs the user revealed, oldest first, and the persona that was written from them."""

    persona: Persona = field(default_factory=Persona)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {"pairs": [pair_to_json(pair) for pair in self.pairs], "persona": persona_to_json(self.persona)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PersonaState:
        """Read what `to_json` wrote."""
        return cls(tuple(pair_from_json(row) for row in value["pairs"]), persona_from_json(value["persona"]))


class PersonaPolicy(InContext):
    """The policy with the user's persona in its system turn and the user's examples as turns.

    Without a persona it is in-context learning, and without a support set zero-shot, to the bit. Where prompt and
    persona do not fit together with every example, examples are dropped whole, least useful first, and counted; the
    persona stays.

    Args:
        num_demonstrations: at most; None for the whole support set.
        retriever: name in the catalogue: it orders the support set.
        persona: how personas are written and chosen.
        persona_turn: "system", or "user" for models whose template takes no system turn.
        labels: names of the two places where personas are verified, as for a judge.
        writer: who writes and verifies personas; the policy itself unless given.
    """

    name = "persona"

    def __init__(
        self,
        backbone: Backbone,
        decoder: Decoder,
        settings: GenerationSettings | None = None,
        *,
        num_demonstrations: int | None = DEMONSTRATIONS,
        retriever: str = "recent",
        persona: PersonaSettings | None = None,
        persona_turn: PersonaTurn = "system",
        labels: tuple[str, str] = LABELS,
        writer: ChatModel | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(
            backbone, decoder, settings, num_demonstrations=num_demonstrations, retriever=retriever, **rest
        )
        check_choice("persona", "persona_turn", persona_turn, ("system", "user"))
        self.name = "persona"
        self.persona_turn = persona_turn
        asker = PairAsker(
            writer if writer is not None else LocalChat(backbone),
            num_demonstrations=num_demonstrations,
            retriever=retriever,
            labels=labels,
            # The study's limit is in tokens, which mean nothing to another writer.
            max_prompt_size=self.settings.context_tokens if writer is None else None,
            prompt_template=self.settings.prompt_template,
            seed=self.settings.seed,
        )
        self.writer = PersonaWriter(asker, persona or PersonaSettings(), seed=self.settings.seed, shows_references=True)

    def adapt(self, support: Sequence[PreferencePair]) -> PersonaState:
        """Return the support set and the persona written from it; the same seed gives the same persona."""
        return PersonaState(tuple(support), self.writer.write(support))

    def show(self, prompt: Prompt, state: Any, limit: int) -> Prepared:
        """Return the prompt with the persona and as many demonstrations as asked for and as fit."""
        if not isinstance(state, PersonaState):
            raise DataError("a persona deployment needs a state of its own; pass adapt(support) as the state.")
        text = state.persona.text
        if not text:
            return super().show(prompt, state, limit)
        settings, encoder = self.settings, self.backbone.encoder
        bare = AdaptedPolicy.show(self, prompt, None, limit)
        room = min(settings.context_tokens or self.backbone.context, self.backbone.context) - settings.max_new_tokens
        chosen = self.select(prompt, state)

        def full(count: int) -> Prompt:
            pairs = [state.pairs[index] for index in reversed(chosen[:count])]
            return with_persona(with_demonstrations(prompt, pairs), text, self.persona_turn)

        def fits(count: int) -> bool:
            return len(encoder.encode_prompt(full(count))) <= room

        shown = most_that_fit(len(chosen), fits)
        if shown:
            return Prepared(full(shown), encoder.encode_prompt(full(shown)), shown, len(chosen) - shown)
        # The persona comes on top of what the prompt itself may take.
        alone = full(0)
        added = len(encoder.encode_prompt(alone)) - len(encoder.encode_prompt(prompt))
        ids = encoder.encode_prompt(alone, max_tokens=min(len(bare.ids) + added, room), on_long=settings.on_long)
        return Prepared(alone, ids, 0, len(chosen))


def persona(
    policy: Backbone,
    support: Sequence[PreferencePair],
    *,
    num_demonstrations: int | None = DEMONSTRATIONS,
    retriever: str = "recent",
    writer: ChatModel | None = None,
    decoder: Decoder | None = None,
    settings: GenerationSettings | None = None,
    persona_turn: PersonaTurn = "system",
    **options: Any,
) -> PersonaPolicy:
    """Return the policy with a user's persona and examples in its prompt.

    Args:
        policy: the frozen policy.
        support: the user's pairs, oldest first.
        num_demonstrations: at most; None for all.
        retriever: "recent" (the last ones), "bm25" (by similarity to the query) or "uniform".
        writer: who writes the persona: the policy itself, or a `ChatEndpoint`.
        decoder: greedy unless given.
        settings: lengths and rules; its seed is that of the draws.
        persona_turn: "system", or "user" for models whose template takes no system turn.
        options: fields of `PersonaSettings`.
    """
    deployed = PersonaPolicy(
        policy,
        decoder or Greedy(),
        settings,
        num_demonstrations=num_demonstrations,
        retriever=retriever,
        persona=PersonaSettings(**options),
        persona_turn=persona_turn,
        writer=writer,
    )
    deployed.state = deployed.adapt(support)
    return deployed


@dataclass(frozen=True)
class PersonaConfig(PersonaSettings):
    """Settings of the deployment, beside those of every in-context one."""

    persona_turn: PersonaTurn = field(
        default="system", metadata=meaning("'system', or 'user' for models whose template takes no system turn")
    )
    labels: tuple[str, str] = field(
        default=LABELS, metadata=meaning("names of the two places where personas are verified, one token each")
    )


def _build(
    backbone: Backbone,
    settings: GenerationSettings,
    traces: TraceCache | None,
    num_demonstrations: int | None,
    retriever: str | None,
    *,
    writer: ChatModel | None = None,
    **options: Any,
) -> PersonaPolicy:
    config = asdict(PersonaConfig(**options))
    return PersonaPolicy(
        backbone,
        Greedy(),
        settings,
        traces=traces,
        num_demonstrations=DEMONSTRATIONS if num_demonstrations is None else num_demonstrations,
        retriever=retriever or "recent",
        persona_turn=config.pop("persona_turn"),
        labels=config.pop("labels"),
        persona=PersonaSettings(**config),
        writer=writer,
    )


CARD = PolicyCard(
    name="persona",
    summary="The user in a few sentences, written by the policy and verified on held-out support, and a few examples.",
    equation="y ~ π(y | persona(support), demonstrations, x)",
    paper="SynthesizeMe! Inducing Persona-Guided Prompts for Personalized Reward Models in LLMs, arXiv 2506.05598",
    build=_build,
    retriever="recent",
    deviations=(
        "The paper personalises a judge; here the same persona and examples personalise what is written.",
        *DEVIATIONS,
        "The persona takes the system turn, in place of a default one that a template would put there; examples are "
        "chat turns.",
    ),
    personal=True,
    state_format=(
        lambda state: canonical_json(state.to_json()).encode(),
        lambda payload: PersonaState.from_json(json.loads(payload)),
    ),
    options={
        "num_demonstrations": "shots, at most; 4 unless given",
        "retriever": "which of them, most useful first; the most recent unless given",
    },
    config=PersonaConfig,
)
