"""A judge that knows a user by a persona in a few sentences, and by a few examples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from rewardgap.policies.asking import LABELS
from rewardgap.policies.cards import JudgeCard
from rewardgap.policies.judge_states import JudgeState
from rewardgap.policies.judges import Judge
from rewardgap.policies.persona_writing import DEMONSTRATIONS, DEVIATIONS, PersonaSettings, PersonaWriter
from rewardgap.rewards.base import meaning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.records import PreferencePair
    from rewardgap.policies.chat_models import ChatModel


class PersonaJudge(Judge):
    """Asks with a persona of the user, written by the same model, and with a few of the user's choices.

    Args:
        model: who writes and judges.
        num_demonstrations: pairs of the user in the prompt, at most; None for all that fit.
        num_personas: personas drawn for a user; the empty one competes too.
        persona_tokens: tokens of a persona, at most.
        temperature: of the draws.
        write_share: share of the support, the older part, that personas are written from.
        rest: as for `Judge`.

    Raises:
        ConfigError: if a value is out of range.

    Source: SynthesizeMe, arXiv 2506.05598. What is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "persona_judge"

    def __init__(
        self,
        model: ChatModel,
        *,
        num_demonstrations: int | None = DEMONSTRATIONS,
        num_personas: int = 3,
        persona_tokens: int = 96,
        temperature: float = 0.7,
        write_share: float = 0.7,
        **rest: Any,
    ) -> None:
        super().__init__(model, num_demonstrations=num_demonstrations, **rest)
        self.settings = PersonaSettings(num_personas, persona_tokens, temperature, write_share)

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this judge again."""
        drawn = asdict(self.settings)
        return {
            entry.name: drawn[entry.name] if entry.name in drawn else getattr(self, entry.name)
            for entry in fields(PersonaJudgeConfig)
        }

    def adapt(self, support: Sequence[PreferencePair]) -> JudgeState:
        """Return the support set and the persona written from it; the same seed gives the same persona."""
        persona = PersonaWriter(self.asker(), self.settings, seed=self.seed).write(support)
        return JudgeState(self.name, tuple(support), persona)


@dataclass(frozen=True)
class PersonaJudgeConfig(PersonaSettings):
    """Settings of `PersonaJudge`."""

    num_demonstrations: int | None = field(
        default=DEMONSTRATIONS, metadata=meaning("pairs of the user in the prompt, at most; none for all that fit")
    )
    retriever: str = field(default="recent", metadata=meaning("which of them, most useful first"))
    labels: tuple[str, str] = field(
        default=LABELS, metadata=meaning("names of the two places; on a local backbone one token each")
    )
    max_prompt_size: int | None = field(
        default=None, metadata=meaning("longest prompt: tokens on a backbone, characters over an endpoint")
    )
    opponent_tokens: int = field(
        default=32, metadata=meaning("length of the opponents of rewards, where the judge's own model writes them")
    )


CARD = JudgeCard(
    name="persona_judge",
    summary="A language model that reads a persona of the user, which it wrote and verified itself, and a few choices.",
    paper="SynthesizeMe! Inducing Persona-Guided Prompts for Personalized Reward Models in LLMs, arXiv 2506.05598",
    equation="m(y, y') = ½ [ℓ(A=y, B=y') - ℓ(A=y', B=y)] given the persona;  r(y) = m(y, y₀)",
    peer="SALT-NLP/SynthesizeMe synthesizeme/personalrm/synthesizeme.py",
    deviations=(
        *DEVIATIONS,
        "The examples beside the persona are the most recent pairs; the peer chooses them by search.",
        "Rewards are margins over one fixed opponent a prompt, the greedy zero-shot completion; the peer ranks pairs "
        "only.",
    ),
    config=PersonaJudgeConfig,
    build=PersonaJudge,
)
