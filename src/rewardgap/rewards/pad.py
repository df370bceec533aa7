"""PAD: a language model fitted by DPO that reads a text about the user; what the text changes is the reward."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from rewardgap.core.errors import ConfigError
from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.conditioning import Condition, Unconditioned
from rewardgap.rewards.fitting import check_choice, check_count
from rewardgap.rewards.pad_text import KINDS, TURNS, TextKind, TextTurn, TextWriter, UserText
from rewardgap.rewards.token_head import TokenHead
from rewardgap.rewards.training import FitDefaults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewardgap.backbones.hf import Backbone
    from rewardgap.rewards.conditioning import Support

ReferenceKind: TypeAlias = Literal["base", "same"]
EMPTY = -1
"""Stands behind the ids of a text that is shorter than others may be."""


class TextConditioning(Unconditioned):
    """A user is a text, kept as (T,) token ids with -1 behind them; nothing of it is trained.

    Args:
        name: the method's, for messages.
        kind: what a text is made of.
        num_examples: pairs shown at most.
        text_tokens: T.
        profile_key: where pairs hold a profile.
    """

    def __init__(self, name: str, *, kind: TextKind, num_examples: int, text_tokens: int, profile_key: str) -> None:
        self.name, self.kind, self.num_examples = name, kind, num_examples
        self.text_tokens, self.profile_key = text_tokens, profile_key
        self._writer: TextWriter | None = None
        self.texts = torch.zeros(0, text_tokens, dtype=torch.long)
        self.told = torch.zeros(3, dtype=torch.float64)

    @property
    def writer(self) -> TextWriter:
        """Return who writes the texts; there is one beside a backbone."""
        if self._writer is None:
            raise ConfigError(f"{self.name} is not fitted; call fit, or load a fitted model.")
        return self._writer

    def initialise(self, backbone: Backbone, num_users: int, generator: torch.Generator) -> None:
        """Make room for the texts of U training users."""
        super().initialise(backbone, num_users, generator)
        self._writer = TextWriter(
            self.name, backbone.encoder, self.kind, self.num_examples, self.text_tokens, self.profile_key
        )
        self.texts = torch.full((num_users, self.text_tokens), EMPTY)
        self.told = torch.zeros(3, dtype=torch.float64)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the users' texts (U, T), and means over the training pairs' texts (3,): pairs shown, cut, generic."""
        return {"texts": self.texts, "told": self.told}

    def keep(self, users: Sequence[UserText], pairs: Sequence[UserText]) -> None:
        """Take the texts of the U training users, and what is to be said of those of the N training pairs."""
        self.texts = torch.stack([self.values(text)["text"] for text in users])
        facts = [[float(text.shown), float(text.is_cut), float(not text.shown)] for text in pairs]
        self.told = torch.tensor(facts, dtype=torch.float64).mean(0)

    def values(self, text: UserText) -> dict[str, torch.Tensor]:
        """Return a text as a user's values."""
        ids = torch.full((self.text_tokens,), EMPTY)
        ids[: len(text.ids)] = torch.tensor(text.ids, dtype=torch.long)
        return {"text": ids}

    def ids(self, values: Mapping[str, torch.Tensor]) -> list[int]:
        """Return the ids of a user's text.

        Raises:
            ConfigError: if they are no token ids.
        """
        found: list[int] = values["text"].tolist()
        ids = found[: found.index(EMPTY)] if EMPTY in found else found
        if values["text"].dtype != torch.long or any(index < 0 for index in ids) or set(found[len(ids) :]) - {EMPTY}:
            raise ConfigError(f"{self.name}: the text of a user state is no row of token ids; adapt again.")
        return ids

    def of_values(self, values: list[Mapping[str, torch.Tensor]]) -> Condition:
        """Return the condition everybody has: a text is read in the prompt."""
        for own in values:
            self.ids(own)
        return super().of_values(values)

    def own(self, row: int) -> dict[str, torch.Tensor]:
        """Return a training user's text."""
        return {"text": self.texts[row]}

    def cold_start(self) -> dict[str, torch.Tensor]:
        """Return the generic text."""
        return self.values(self.writer.generic)

    def adapt(self, support: Support) -> dict[str, torch.Tensor]:
        """Return the text that a new user's pairs give."""
        return self.values(self.writer.write(support.records))


class PAD(TokenHead):
    """A user's reward is what a model that was told of the user finds likelier than one that was not.

        r_u(x, y) = β [ log π_PRM(y | x, p_u) - log π_ref(y | x) ]          min  mean softplus(-(r_u(y+) - r_u(y-)))

    p_u is a text about the user in the prompt, made of the user's pairs by rule. Log-probabilities are summed over the
    completion with its end token. π_ref is the backbone without adapter, which reads no text of the user (`ref: base`),
    so that rewards hold what the text says by itself too, or reads the same (`ref: same`): then rewards are zero before
    training, and the loss is DPO's on prompts that tell of their users.

    A training pair is read behind a text made of other pairs of its user, never of itself, of its prompt or of its
    conversation; each epoch has other draws of those pairs, since a text that stays the same is learnt by heart. A
    share of pairs, drawn, is read behind the generic text. For a new user nothing is trained: the support set
    is written down, and without pairs the text is the generic one.

    Args:
        text: what texts are made of, see `TextWriter`.
        num_examples: pairs shown at most.
        text_tokens: tokens of a text at most.
        profile_key: where pairs hold a profile, for text "profile".
        text_turn: "system", or "user" for models whose template takes no system turn.
        ref: "base" or "same".
        generic_share: probability, at least 0 and below 1, of the generic text in place of a training pair's.
        beta: β > 0. Large values keep π_PRM near π_ref.

    Raises:
        ConfigError: if a value is out of range.

    Source: arXiv 2410.04070, the token reward and its decoding; DPO, arXiv 2305.18290, equations 5 and 7. What is done
        differently is listed on `CARD`.
    """

    name: ClassVar[str] = "pad"
    defaults: ClassVar[FitDefaults] = FitDefaults(epochs=2, batch_size=32, learning_rate=5e-5)
    conditioning: TextConditioning

    def __init__(
        self,
        *,
        text: TextKind = "examples",
        num_examples: int = 4,
        text_tokens: int = 256,
        profile_key: str = "demographics",
        text_turn: TextTurn = "system",
        ref: ReferenceKind = "base",
        generic_share: float = 0.1,
        beta: float = 0.1,
    ) -> None:
        check_choice(self.name, "text", text, KINDS)
        check_choice(self.name, "text_turn", text_turn, TURNS)
        check_choice(self.name, "ref", ref, ("base", "same"))
        check_count(self.name, num_examples=num_examples, text_tokens=text_tokens)
        if isinstance(generic_share, bool) or not isinstance(generic_share, (int, float)) or not 0 <= generic_share < 1:
            raise ConfigError(f"{self.name}: generic_share is {generic_share!r}; expected a share, 0 or more, below 1.")
        texts = TextConditioning(
            self.name, kind=text, num_examples=num_examples, text_tokens=text_tokens, profile_key=profile_key
        )
        super().__init__(texts, beta=beta, relative=True, alpha=1.0)
        self.text_turn, self.ref, self.generic_share = text_turn, ref, generic_share
        self._config = PADConfig(
            text=text,
            num_examples=num_examples,
            text_tokens=text_tokens,
            profile_key=profile_key,
            text_turn=text_turn,
            ref=ref,
            generic_share=generic_share,
            beta=beta,
        )

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return asdict(self._config)

    @property
    def diagnostics(self) -> dict[str, float]:
        """Return what every method has, and how much the texts tell.

        `text_tokens` is the mean size of the training users' texts; of the texts of the training pairs, `text_pairs`
        is how many pairs they show, `text_cut` the share with a part cut, and `text_generic` the share of pairs whose
        user has no other pair that may be shown, before any share is drawn.
        """
        shown, cut, generic = self.conditioning.told.tolist()
        size = float((self.conditioning.texts != EMPTY).sum(1).double().mean())
        own = {"text_tokens": size, "text_pairs": shown, "text_cut": cut, "text_generic": generic}
        return super().diagnostics | own


@dataclass(frozen=True)
class PADConfig:
    """Settings of `PAD`."""

    text: TextKind = field(
        default="examples",
        metadata=meaning(
            "'examples': the user's choices; 'written': what the user wrote, else chose; 'profile': a text in meta"
        ),
    )
    num_examples: int = field(default=4, metadata=meaning("pairs shown in a text, at most; the newest"))
    text_tokens: int = field(default=256, metadata=meaning("tokens of a text, at most; longer parts are cut alike"))
    profile_key: str = field(default="demographics", metadata=meaning("name in meta, for text 'profile'"))
    text_turn: TextTurn = field(
        default="system", metadata=meaning("'system', or 'user' for models whose template takes no system turn")
    )
    ref: ReferenceKind = field(
        default="base", metadata=meaning("'base': the reference reads no text; 'same': it reads the user's too")
    )
    generic_share: float = field(
        default=0.1, metadata=meaning("probability of the generic text in place of a training pair's, for new users")
    )
    beta: float = field(default=0.1, metadata=meaning("β of DPO; large keeps the policy near the reference"))


def _build(config: Any) -> Any:
    return PAD(**asdict(config))


CARD = MethodCard(
    name="pad",
    summary="A language model fitted by DPO that reads a text about the user; its implicit reward.",
    paper="PAD: Personalized Alignment of LLMs at Decoding-Time, arXiv 2410.04070",
    equation="r_u(x, y) = β [log π_PRM(y | x, p_u) - log π_ref(y | x)];  min  -mean log σ(Δr_u)",
    peer="zjuruizhechen/PAD inference/PAD.py @ 27cebd4; code of its training is not there",
    deviations=(
        "The paper's texts name principles that annotators judged by; here a text is made of the user's own pairs, or "
        "is a profile that the data hold. No second model writes it: a written persona would need a policy here.",
        "The policy that is guided does not see the text; the peer puts the principle into its prompt as well, so that "
        "prompting and guidance cannot be told apart.",
        "π_ref is the backbone that π_PRM was trained from; the peer takes the guided policy with its prompt, and "
        "normalises both over the candidates, which adds a constant to a step and changes no choice.",
        "Guidance is log π + λ r with r in units of the training margins' deviation: the paper's w is λ β / scale.",
        "With ref: base the reward before training is what the text alone changes, as in contrasting two prompts; with "
        "ref: same it is zero.",
        "A text is cut to a budget of tokens, its longest parts alike; how many were cut is in the diagnostics.",
        "With text_turn: user a prompt over its limit is an error: cutting it would cut the text first.",
        "With an end token as candidate, guided decoding counts its own log-ratio; a completion is scored with it.",
    ),
    config=PADConfig,
    build=_build,
    personal=True,
    family="autoregressive",
    # The control's vocabulary is twelve words: it can spell what users wrote, and no heading.
    control={
        "options": {
            "text": "written",
            "num_examples": 24,
            "text_tokens": 150,
            "beta": 1.0,
        },
        "epochs": 1,
        "learning_rate": 2e-2,
    },
)
