"""FaRMA: a language model that tabulates what a prefix is worth with each next token, in one forward pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rewardgap.core.errors import ConfigError
from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.conditioning import Conditioning, PromptForm, SoftPromptConditioning, Unconditioned
from rewardgap.rewards.fitting import check_count, check_positive
from rewardgap.rewards.token_head import TokenHead
from rewardgap.rewards.training import FitDefaults
from rewardgap.rewards.value_table import ValueTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rewardgap.rewards.token_head import Part


class Farma(TokenHead):
    """A user's values of prefixes, under a network with a soft prompt a user.

        r_u(x, y) = V(y_T | x, e_u, y<T),  y_T the end token;  V is the table of `ValueTable`
        (i)   min  mean softplus(-(r_u(y+) - r_u(y-))) + c (r_u(y+) + r_u(y-))²
        (ii)  min  mean κ ( V(y_i | x, e_u, y<i) - max_v V(v | x, e_u, y≤i) )²,  i < T, the maximum a constant

    Batches take turns, (i) before (ii). Each loss counts α for the user and 1 - α for the generic user 0, and adds the
    pull l2 ‖o_u‖². Alone, (i) would leave all tokens but the end untaught; (ii) hands what a text turned out to be
    worth back to the tokens before. κ matters although the losses never meet in a step: one optimiser sets the size of
    its steps by the gradients of both, and those of (ii) are the larger. Soft prompts e_u and new users are those of
    P-DPO: 'cluster' or 'individual'.

    Values are of prefixes, so the increments of a prefix's tokens add up to its own; a bare prompt has value 0, which
    no choice between tokens or completions sees. The maximum is over the tokens with which training texts of the prompt
    go on after the prefix: those have values that were trained. With `backup_top_k` it is over the backbone's likeliest
    as well, or over the whole vocabulary as in the paper. A token with which no text goes on has the value that the
    table makes of like ones, and it is the largest often: a prefix then keeps the hope of it however its texts end.

    Args:
        form: "cluster" has M numbers a user and is the safer one for few pairs; "individual" has T_u · D.
        num_user_tokens: T_u ≥ 0; 0 has no users.
        num_clusters: M, for form "cluster".
        alpha: share of the user's own loss, above 0 and at most 1.
        table_rank: R of the table.
        backup_top_k: likeliest tokens that the maximum is over as well; None for the whole vocabulary.
        consistency_weight: κ, in nats a squared logit.
        centre_weight: c, in nats a squared logit.
        user_l2: l2, in nats a pair.
        table_rate: learning rate of the table; the adapter's is an argument of `fit`.
        prompt_rate: learning rate of soft prompts while fitting.
        weight_rate: learning rate of cluster logits, while fitting and adapting.
        adapt_rate: learning rate of a new user's o_u, for form "individual".
        adapt_steps: steps of adaptation at most.
        adapt_margin: adaptation ends once the mean margin of the support is above it.

    Raises:
        ConfigError: if a value is out of range.

    Source: FaRMA, its two losses. What is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "farma"
    defaults: ClassVar[FitDefaults] = FitDefaults(epochs=4, batch_size=32, learning_rate=1e-4)

    def __init__(
        self,
        *,
        form: PromptForm = "cluster",
        num_user_tokens: int = 10,
        num_clusters: int = 5,
        alpha: float = 0.5,
        table_rank: int = 32,
        backup_top_k: int | None = 0,
        consistency_weight: float = 0.1,
        centre_weight: float = 1e-3,
        user_l2: float = 1e-3,
        table_rate: float = 5e-3,
        prompt_rate: float = 5e-3,
        weight_rate: float = 5e-2,
        adapt_rate: float = 1e-2,
        adapt_steps: int = 100,
        adapt_margin: float = 3.0,
    ) -> None:
        if not _is_count(num_user_tokens):
            raise ConfigError(f"farma: num_user_tokens is {num_user_tokens!r}; expected an integer of at least 0.")
        check_count(self.name, table_rank=table_rank)
        check_positive(self.name, table_rate=table_rate)
        check_positive(self.name, consistency_weight=consistency_weight, centre_weight=centre_weight)
        if backup_top_k is not None and not _is_count(backup_top_k):
            raise ConfigError(
                f"farma: backup_top_k is {backup_top_k!r}; expected an integer of at least 0, or null for all tokens."
            )
        prompts = SoftPromptConditioning(
            self.name,
            form=form,
            num_user_tokens=max(num_user_tokens, 1),
            num_clusters=num_clusters,
            user_l2=user_l2,
            prompt_rate=prompt_rate,
            weight_rate=weight_rate,
            adapt_rate=adapt_rate,
            adapt_steps=adapt_steps,
            adapt_margin=adapt_margin,
        )
        conditioning: Conditioning = prompts if num_user_tokens else Unconditioned()
        self.table, self.backup_top_k = ValueTable(table_rank, table_rate), backup_top_k
        self.consistency_weight, self.centre_weight = consistency_weight, centre_weight
        # Values are Bradley-Terry logits as they are.
        super().__init__(conditioning, beta=1.0, relative=False, alpha=alpha)
        self._config = FarmaConfig(
            form=form,
            num_user_tokens=num_user_tokens,
            num_clusters=num_clusters,
            alpha=alpha,
            table_rank=table_rank,
            backup_top_k=backup_top_k,
            consistency_weight=consistency_weight,
            centre_weight=centre_weight,
            user_l2=user_l2,
            table_rate=table_rate,
            prompt_rate=prompt_rate,
            weight_rate=weight_rate,
            adapt_rate=adapt_rate,
            adapt_steps=adapt_steps,
            adapt_margin=adapt_margin,
        )

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return asdict(self._config)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the conditioning and the table."""
        return (self.conditioning, self.table)

    def calibrate(self, margins: torch.Tensor, user_index: torch.Tensor, losses: Sequence[float]) -> None:
        """Set counts, `reward_scale` and `history`, which keeps the pair loss: the other is in another unit."""
        super().calibrate(margins, user_index, losses[::2])


@dataclass(frozen=True)
class FarmaConfig:
    """Settings of `Farma`."""

    form: PromptForm = field(
        default="cluster", metadata=meaning("'cluster': users mix shared soft prompts; 'individual': each has one")
    )
    num_user_tokens: int = field(default=10, metadata=meaning("vectors of a soft prompt; 0 has no users"))
    num_clusters: int = field(default=5, metadata=meaning("shared soft prompts, for form 'cluster'"))
    alpha: float = field(
        default=0.5, metadata=meaning("share of the user's own losses; the rest is the generic user's on the same pair")
    )
    table_rank: int = field(default=32, metadata=meaning("rank of the table of values"))
    backup_top_k: int | None = field(
        default=0,
        metadata=meaning("likeliest next tokens a backup looks at, beside those of training texts; null: all tokens"),
    )
    consistency_weight: float = field(
        default=0.1, metadata=meaning("weight of the consistency of prefixes, in nats a squared logit")
    )
    centre_weight: float = field(
        default=1e-3, metadata=meaning("pull of the values of whole texts to 0, in nats a squared logit")
    )
    user_l2: float = field(
        default=1e-3, metadata=meaning("pull of a user to the generic user, on the squared offset, in nats a pair")
    )
    table_rate: float = field(default=5e-3, metadata=meaning("learning rate of the table"))
    prompt_rate: float = field(default=5e-3, metadata=meaning("learning rate of soft prompts while fitting"))
    weight_rate: float = field(
        default=5e-2, metadata=meaning("learning rate of a user's cluster logits, while fitting and adapting")
    )
    adapt_rate: float = field(
        default=1e-2, metadata=meaning("learning rate of a new user's soft prompt, for form 'individual'")
    )
    adapt_steps: int = field(default=100, metadata=meaning("steps of adaptation at most"))
    adapt_margin: float = field(
        default=3.0, metadata=meaning("adaptation ends once the support's mean margin is above it, in logits")
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _build(config: Any) -> Any:
    return Farma(**asdict(config))


CARD = MethodCard(
    name="farma",
    summary="A language model that tabulates the value of every next token in one pass, with a soft prompt a user.",
    paper="Towards Cost-Effective Reward Guided Text Generation (FaRMA), arXiv 2502.04517",
    equation=(
        "r_u(x, y) = V(y_T | x, e_u, y<T);  min  -mean log σ(Δr_u) + c (r_u(y+) + r_u(y-))²  and  "
        "min  mean κ (V(y_i | ·, y<i) - sg max_v V(v | ·, y≤i))²,  in turn"
    ),
    peer="ahmadrash/FaRMA @ 90163e1",
    deviations=(
        "FaRMA has no users: soft prompts, the generic user and new users are those of P-DPO.",
        "Values come from a table of low rank that begins at 0 and reads the output head's rows; the peer takes the "
        "logits of a language model as values from the start.",
        "The maximum of a backup is a constant; in the peer gradient flows through it.",
        "A backup looks at the tokens with which training texts of the prompt go on; the peer looks at the whole "
        "vocabulary, which is backup_top_k: null here, and where a value that nothing trained can be the largest.",
        "The values of whole texts are pulled to 0, at a small weight: pairs leave their level open, and maxima raise "
        "it. The peer's trainer has the pull as an option that its scripts leave off.",
        "The losses take turns batch by batch under one optimiser, the second at a weight of 0.1; the peer trains "
        "8,000 samples on one, then on the other, seven times, each time with a fresh optimiser and no weight.",
        "All prefixes of both completions are backed up, in the one pass that reads them; the peer draws prefixes of "
        "chosen texts that are longer than 10 tokens.",
        "The last token is the end token, and its value is read where it is predicted; the peer has no end token, and "
        "reads the last column of a batch, which is padding for shorter texts.",
        "Prompts have one form in training and decoding, and values are added to log-probabilities; the peer's forms "
        "differ, and it adds them to raw logits.",
        "Adapters are trained, at a rate of their own; the peer trains all weights, at 5e-6 and 128 samples a step.",
        "Guidance is log π + λ r with r in units of the training margins' deviation: the peer's β is λ / scale.",
    ),
    config=FarmaConfig,
    build=_build,
    personal=True,
    family="autoregressive",
    control={
        "options": {
            "num_user_tokens": 4,
            "alpha": 1.0,
            "user_l2": 1e-4,
            "table_rate": 2e-2,
            "prompt_rate": 0.1,
            "weight_rate": 0.3,
            "adapt_margin": 30.0,
        },
        "epochs": 40,
        "learning_rate": 5e-3,
    },
)
