"""P-DPO: a language model fitted by DPO, with a soft prompt for each user; its implicit reward is the reward."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from rewardgap.core.errors import ConfigError
from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.conditioning import Conditioning, PromptForm, SoftPromptConditioning, Unconditioned
from rewardgap.rewards.token_head import TokenHead
from rewardgap.rewards.training import FitDefaults


class PDPO(TokenHead):
    """A user's implicit reward under a policy with a soft prompt a user.

        r_u(x, y) = β [ log π_θ(y | x, e_u) - log π_ref(y | x) ]
        min  mean  α softplus(-(r_u(y+) - r_u(y-))) + (1 - α) softplus(-(r_0(y+) - r_0(y-))) + l2 ‖o_u‖²

    π_ref is the backbone without adapter and without soft prompt; log-probabilities are summed over the completion
    with its end token. e_u stands after the beginning-of-text token, before the prompt, and is

        cluster:     Σ_c softmax(ω_u)_c C_c,  with o_u = ω_u (M,);  the generic user 0 has the mean of the C_c
        individual:  e_0 + o_u,               with o_u (T_u, D)

    A new user's o_u is found by Adam on the support with everything else fixed; without pairs it is the generic user.
    Without user tokens this is DPO.

    Args:
        form: "cluster" has M numbers a user and is the safer one for few pairs; "individual" has T_u · D.
        num_user_tokens: T_u ≥ 0.
        num_clusters: M, for form "cluster".
        alpha: share of the user's own loss, above 0 and at most 1.
        beta: β > 0. Large values keep π_θ near π_ref.
        user_l2: l2, in nats a pair.
        prompt_rate: learning rate of soft prompts while fitting; the adapter's is an argument of `fit`.
        weight_rate: learning rate of ω, while fitting and adapting.
        adapt_rate: learning rate of a new user's o_u, for form "individual".
        adapt_steps: steps of adaptation at most.
        adapt_margin: adaptation ends once the mean margin of the support is above it.

    Raises:
        ConfigError: if a value is out of range.

    Source: arXiv 2402.05133, the P-DPO objective and its user models; DPO, arXiv 2305.18290, equations 5 and 7. What is
        done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "p_dpo"
    defaults: ClassVar[FitDefaults] = FitDefaults(epochs=2, batch_size=32, learning_rate=5e-5)

    def __init__(
        self,
        *,
        form: PromptForm = "cluster",
        num_user_tokens: int = 10,
        num_clusters: int = 5,
        alpha: float = 0.5,
        beta: float = 0.1,
        user_l2: float = 1e-3,
        prompt_rate: float = 5e-3,
        weight_rate: float = 5e-2,
        adapt_rate: float = 1e-2,
        adapt_steps: int = 100,
        adapt_margin: float = 3.0,
    ) -> None:
        if isinstance(num_user_tokens, bool) or not isinstance(num_user_tokens, int) or num_user_tokens < 0:
            raise ConfigError(f"p_dpo: num_user_tokens is {num_user_tokens!r}; expected an integer of at least 0.")
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
        super().__init__(conditioning, beta=beta, relative=True, alpha=alpha)
        self._config = PDPOConfig(
            form=form,
            num_user_tokens=num_user_tokens,
            num_clusters=num_clusters,
            alpha=alpha,
            beta=beta,
            user_l2=user_l2,
            prompt_rate=prompt_rate,
            weight_rate=weight_rate,
            adapt_rate=adapt_rate,
            adapt_steps=adapt_steps,
            adapt_margin=adapt_margin,
        )

    def config(self) -> dict[str, Any]:
        """Return the plain values that build this head again."""
        return asdict(self._config)


@dataclass(frozen=True)
class PDPOConfig:
    """Settings of `PDPO`."""

    form: PromptForm = field(
        default="cluster", metadata=meaning("'cluster': users mix shared soft prompts; 'individual': each has one")
    )
    num_user_tokens: int = field(default=10, metadata=meaning("vectors of a soft prompt; 0 is DPO"))
    num_clusters: int = field(default=5, metadata=meaning("shared soft prompts, for form 'cluster'"))
    alpha: float = field(
        default=0.5, metadata=meaning("share of the user's own loss; the rest is the generic user's on the same pair")
    )
    beta: float = field(default=0.1, metadata=meaning("β of DPO; large keeps the policy near the reference"))
    user_l2: float = field(
        default=1e-3, metadata=meaning("pull of a user to the generic user, on the squared offset, in nats a pair")
    )
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


def _build(config: Any) -> Any:
    return PDPO(**asdict(config))


CARD = MethodCard(
    name="p_dpo",
    summary="A language model fitted by DPO with a soft prompt for each user; its implicit reward.",
    paper="Personalized Language Modeling from Personalized Human Feedback (P-RLHF), arXiv 2402.05133",
    equation=(
        "r_u(x, y) = β [log π_θ(y | x, e_u) - log π_ref(y | x)];  "
        "min  -mean α log σ(Δr_u) + (1 - α) log σ(Δr_0) + l2 ‖o_u‖²"
    ),
    peer="HumainLab/Personalized_RLHF @ ae1f81b; trl DPOTrainer: the same loss without user tokens",
    deviations=(
        "Adapters sit on every linear layer of the decoder; the peer's list of layer names finds only some of them on "
        "most architectures.",
        "User and generic loss of a pair are formed together, so α means what it says in every batch; the peer "
        "duplicates examples.",
        "In the cluster form the generic user is the mean cluster; the peer gives it a row of its own.",
        "Soft prompts and cluster logits have learning rates of their own and a pull to the generic user.",
        "A new user's offset is fitted on the support; the peer gives every new user the generic prompt.",
        "Users are known by their ids; the peer reads them from the prompt's text.",
        "Where the beginning-of-text token also opens the turns of a chat template, the soft prompt goes before it.",
        "β is 0.1 where the peer takes 0.1 to 0.5.",
        "With an end token as candidate, guided decoding counts its own log-ratio; a completion is scored with it.",
    ),
    config=PDPOConfig,
    build=_build,
    personal=True,
    family="autoregressive",
    control={
        "options": {
            "num_user_tokens": 4,
            "alpha": 1.0,
            "beta": 1.0,
            "user_l2": 1e-4,
            "prompt_rate": 0.1,
            "weight_rate": 0.3,
            "adapt_margin": 30.0,
        },
        "epochs": 20,
        "learning_rate": 2e-2,
    },
)
