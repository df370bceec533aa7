"""GenARM: a language model whose own log-probability is the reward, so that every next token has one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from rewardgap.rewards.base import MethodCard, meaning
from rewardgap.rewards.conditioning import (
    Conditioning,
    MixtureConditioning,
    PromptForm,
    SoftPromptConditioning,
    Unconditioned,
)
from rewardgap.rewards.fitting import check_choice
from rewardgap.rewards.token_head import TokenHead
from rewardgap.rewards.training import FitDefaults

Form: TypeAlias = Literal["softprompt", "global", "mixture"]


class GenARM(TokenHead):
    """An autoregressive reward model, and three ways in which users share it.

        r_u(x, y) = β_r Σ_t log π_r(y_t | x, u, y<t)          min  mean softplus(-(r_u(y+) - r_u(y-)))

    Sums run over the completion with its end token; nothing is divided by length and no reference is taken off, unless
    `relative`. An absolute reward is never positive and falls with every token: at 2 nats a token, a text that is 40
    tokens longer starts 80 nats behind, before any preference.

        global:      one network for everybody
        softprompt:  π_r(y | x, e_u), a soft prompt a user, trained beside a generic user with weight 1 - α
        mixture:     log π_r replaced by Σ_j w_uj log π_j, w_u on the simplex, J networks

    In the mixture a user's reward is linear in the weights, so a new user's are the one optimum of a convex problem
    over the support's log-probabilities. Dividing each step by the sum over the vocabulary, which makes the product a
    distribution, would change no decoding: it adds the same number to all candidates of a step.

    Args:
        form: how users differ.
        relative: take log π_ref off, the backbone's own; rewards are then DPO's.
        beta: β_r > 0.
        alpha: share of the user's own loss, for form "softprompt"; above 0 and at most 1.
        prompt_form: "cluster" or "individual" soft prompts.
        num_user_tokens: T_u ≥ 1, for form "softprompt".
        num_clusters: M, for prompt form "cluster".
        num_bases: J, for form "mixture".
        user_l2: pull of a training user to the generic one, in nats a pair; in adapting soft prompts too.
        user_ridge: pull of a new user's mixture weights to the mean training user's, in nats a pair.
        prompt_rate: learning rate of soft prompts while fitting; the adapters' is an argument of `fit`.
        weight_rate: learning rate of cluster and mixture logits.
        adapt_rate: learning rate of a new user's soft prompt, for prompt form "individual".
        adapt_steps: steps of adapting a soft prompt at most.
        adapt_margin: adapting a soft prompt ends once the mean margin of the support is above it.

    Raises:
        ConfigError: if a value is out of range.

    Source: arXiv 2410.08193, the autoregressive reward model and its training loss; the mixture is the paper's
        multi-objective combination with weights that a user has. What is done differently is listed on `CARD`.
    """

    name: ClassVar[str] = "genarm"
    defaults: ClassVar[FitDefaults] = FitDefaults(epochs=1, batch_size=32, learning_rate=1e-4)

    def __init__(
        self,
        *,
        form: Form = "softprompt",
        relative: bool = False,
        beta: float = 0.1,
        alpha: float = 0.5,
        prompt_form: PromptForm = "cluster",
        num_user_tokens: int = 10,
        num_clusters: int = 5,
        num_bases: int = 3,
        user_l2: float = 1e-3,
        user_ridge: float = 1e-2,
        prompt_rate: float = 5e-3,
        weight_rate: float = 5e-2,
        adapt_rate: float = 1e-2,
        adapt_steps: int = 100,
        adapt_margin: float = 3.0,
    ) -> None:
        check_choice(self.name, "form", form, ("softprompt", "global", "mixture"))
        prompts = SoftPromptConditioning(
            self.name,
            form=prompt_form,
            num_user_tokens=num_user_tokens,
            num_clusters=num_clusters,
            user_l2=user_l2,
            prompt_rate=prompt_rate,
            weight_rate=weight_rate,
            adapt_rate=adapt_rate,
            adapt_steps=adapt_steps,
            adapt_margin=adapt_margin,
        )
        mixture = MixtureConditioning(
            self.name, num_networks=num_bases, user_l2=user_l2, user_ridge=user_ridge, weight_rate=weight_rate
        )
        forms: dict[str, Conditioning] = {"softprompt": prompts, "mixture": mixture, "global": Unconditioned()}
        super().__init__(forms[form], beta=beta, relative=relative, alpha=alpha)
        self._config = GenARMConfig(
            form=form,
            relative=relative,
            beta=beta,
            alpha=alpha,
            prompt_form=prompt_form,
            num_user_tokens=num_user_tokens,
            num_clusters=num_clusters,
            num_bases=num_bases,
            user_l2=user_l2,
            user_ridge=user_ridge,
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
class GenARMConfig:
    """Settings of `GenARM`."""

    form: Form = field(
        default="softprompt",
        metadata=meaning("'softprompt': a soft prompt a user; 'mixture': users weigh networks; 'global': no users"),
    )
    relative: bool = field(default=False, metadata=meaning("take the backbone's own log-probability off"))
    beta: float = field(default=0.1, metadata=meaning("β of the training loss, which is in logits"))
    alpha: float = field(
        default=0.5, metadata=meaning("share of the user's own loss, for form 'softprompt'; the rest is the generic's")
    )
    prompt_form: PromptForm = field(
        default="cluster", metadata=meaning("'cluster': users mix shared soft prompts; 'individual': each has one")
    )
    num_user_tokens: int = field(default=10, metadata=meaning("vectors of a soft prompt"))
    num_clusters: int = field(default=5, metadata=meaning("shared soft prompts, for prompt form 'cluster'"))
    num_bases: int = field(default=3, metadata=meaning("networks, for form 'mixture'"))
    user_l2: float = field(
        default=1e-3, metadata=meaning("pull of a user to the generic user, on the squared offset, in nats a pair")
    )
    user_ridge: float = field(
        default=1e-2, metadata=meaning("pull of a new user's mixture weights to the mean user's, in nats a pair")
    )
    prompt_rate: float = field(default=5e-3, metadata=meaning("learning rate of soft prompts while fitting"))
    weight_rate: float = field(default=5e-2, metadata=meaning("learning rate of cluster and mixture logits"))
    adapt_rate: float = field(
        default=1e-2, metadata=meaning("learning rate of a new user's soft prompt, for prompt form 'individual'")
    )
    adapt_steps: int = field(default=100, metadata=meaning("steps of adapting a soft prompt at most"))
    adapt_margin: float = field(
        default=3.0, metadata=meaning("adaptation ends once the support's mean margin is above it, in logits")
    )


def _build(config: Any) -> Any:
    return GenARM(**asdict(config))


CARD = MethodCard(
    name="genarm",
    summary="A language model whose token log-probabilities are the reward, with a soft prompt or weights a user.",
    paper="GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment, arXiv 2410.08193",
    equation="r_u(x, y) = β Σ_t log π_r(y_t | x, u, y<t);  min  -mean log σ(Δr_u)",
    peer="Yuancheng-Xu/GenARM @ 824e846",
    deviations=(
        "The paper has no users: soft prompts are those of P-DPO, and the mixture is its multi-objective combination "
        "with a user's own weights.",
        "A mixture is linear in log-probabilities and is not divided by its sum over the vocabulary, which no decoding "
        "sees; rewards of whole texts differ from the normalised product's by that sum.",
        "An absolute reward prefers shorter texts before it prefers anything: each token costs its own surprise. "
        "relative: true takes the backbone's log-probability off, and the reward is then DPO's.",
        "Guidance is log π + λ r with r in units of the training margins' deviation: the paper's α is λ β / scale. "
        "Nothing is divided by 1 + α, so no temperature has to undo it.",
        "Candidates are the policy's top k unless top_k is the whole vocabulary, where the paper takes all.",
        "Adapters sit on every linear layer of the decoder; the peer's list of layer names finds only some of them on "
        "most architectures.",
        "No example is dropped for its length in characters: a text that does not fit the context is an error.",
    ),
    config=GenARMConfig,
    build=_build,
    personal=True,
    family="autoregressive",
    # Absolute rewards begin as the backbone's log-probabilities, whose spread on the control's texts drowns the taste.
    control={
        "options": {
            "relative": True,
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
