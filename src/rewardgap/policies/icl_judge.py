"""A judge that knows a user by examples: the pairs the user revealed stand in its prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from rewardgap.policies.asking import LABELS
from rewardgap.policies.cards import JudgeCard
from rewardgap.policies.judge_states import JudgeState
from rewardgap.policies.judges import Judge
from rewardgap.rewards.base import meaning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewardgap.core.records import PreferencePair
    from rewardgap.policies.chat_models import ChatModel


class IclJudge(Judge):
    """Asks with the user's own choices as examples; without any it is a judge that knows nobody.

    Args and errors are those of `Judge`.

    Source: judging by a language model in both orders, arXiv 2306.05685. What is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "icl_judge"

    def __init__(self, model: ChatModel, *, num_demonstrations: int | None = None, **rest: Any) -> None:
        super().__init__(model, num_demonstrations=num_demonstrations, **rest)

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this judge again."""
        return {entry.name: getattr(self, entry.name) for entry in fields(IclJudgeConfig)}

    def adapt(self, support: Sequence[PreferencePair]) -> JudgeState:
        """Return the support set itself."""
        return JudgeState(self.name, tuple(support))


@dataclass(frozen=True)
class IclJudgeConfig:
    """Settings of `IclJudge`."""

    num_demonstrations: int | None = field(
        default=None, metadata=meaning("pairs of the user in the prompt, at most; all that fit unless given")
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
    name="icl_judge",
    summary="A language model that reads the user's own choices and says which of two completions the user prefers.",
    paper="Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, arXiv 2306.05685",
    equation="m(y, y') = ½ [ℓ(A=y, B=y') - ℓ(A=y', B=y)],  ℓ = logit(First) - logit(Second);  r(y) = m(y, y₀)",
    peer="lm-sys/FastChat fastchat/llm_judge",
    deviations=(
        "The judge knows one user: the user's own pairs are its examples, where the paper judges for people at large.",
        "The verdict is the difference of two logits at the first token of the answer, not a text to be parsed; there "
        "is no explanation before it.",
        "Both orders are averaged to a margin; the paper calls a pair a tie where the two verdicts differ.",
        "Margins are in nats and not divided by their deviation on training pairs, so they compare with no reward.",
        "Rewards are margins over one fixed opponent a prompt, the greedy zero-shot completion.",
    ),
    config=IclJudgeConfig,
    build=IclJudge,
)
